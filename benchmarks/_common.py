"""What benchmarks have in common: tables, goals, processes of their own and peaks of memory."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from stages.process.environment import child_environment
from stages.process.memory import anonymous_bytes
from stages.process.outcome import StageOutcome

MIB = 1 << 20
PENSTOCK = [sys.executable, "-m", "flows.cli.main"]


def met(good: bool) -> str:
    """Say whether a goal was met."""
    return "met" if good else "NOT met"


def cells(texts: Iterable[object]) -> str:
    """A row of a table, in Markdown."""
    return f"| {' | '.join(map(str, texts))} |"


def heads(names: str) -> str:
    """The first two lines of a table whose columns are named so, with `|` between the names."""
    return f"| {names} |\n|{'---|' * len(names.split('|'))}"


def in_child(module: str, *arguments: str, **environment: str) -> dict[str, Any]:
    """What a module, run in a process of its own, prints last as JSON."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env={**child_environment(), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def taken(outcome: StageOutcome, device: str) -> int:
    """The most that a stage's process held: of a CPU above its imports, of a GPU above what was
    held before."""
    if device == "cpu":
        return int(outcome.peak_host_bytes - outcome.notes["loaded_bytes"])
    return outcome.peak_device_bytes - outcome.baseline_before_bytes


class Peak:
    """The most that this process held since it was made, looked at oftener than a stage looks."""

    def __init__(self, every: float = 0.001) -> None:
        self._every = every
        self._base = self._most = anonymous_bytes()
        threading.Thread(target=self._follow, daemon=True).start()

    def bytes(self) -> int:
        """Above what it held at first."""
        return max(self._most, anonymous_bytes()) - self._base

    def _follow(self) -> None:
        while True:
            self._most = max(self._most, anonymous_bytes())
            time.sleep(self._every)


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """One line of a table of figures and goals."""

    name: str
    value: float
    goal: float | None = None
    """Required minimum; None: the value is only reported."""
    form: str = "7.1f"
    """How the value is printed: percent, or a share with its decimals."""

    def __str__(self) -> str:
        goal = "" if self.goal is None else f"  asked for {self.goal:g}"
        missed = "" if self.goal is None or self.value >= self.goal else "  MISSED"
        return f"{self.name:58s}{self.value:{self.form}}{goal}{missed}"
