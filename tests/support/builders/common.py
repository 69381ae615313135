"""What benchmarks share: tables, goals, runs of commands, fresh processes and peaks of memory."""

import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from stages.process.child_environment import child_environment
from stages.process.events import EventReporter, StageOutcome
from stages.process.memory import anonymous_bytes

MIB = 1 << 20
PENSTOCK = [sys.executable, "-m", "flows.interfaces.cli.main"]
Found = TypeVar("Found")


def met(good: bool) -> str:
    """Say whether a goal was met."""
    return "met" if good else "NOT met"


def cells(texts: Iterable[object]) -> str:
    """A row of a table, in Markdown."""
    return f"| {' | '.join(map(str, texts))} |"


def heads(names: str) -> str:
    """The first two lines of a table whose columns are named so, with `|` between the names."""
    return f"| {names} |\n|{'---|' * len(names.split('|'))}"


def divided(page: str, name: str) -> tuple[str, str, str]:
    """Return what is before, between and behind the two marks of a name; the marks stay outside.
    Raises ValueError if the page lacks one."""
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    before, first, rest = page.partition(begin)
    text, second, behind = rest.partition(end)
    if not (first and second):
        raise ValueError(f"the page has no {begin.strip()} … {end}")
    return before + begin, text, end + behind


def put(page: str, name: str, text: str) -> str:
    """Return a page with another text between the two marks of a name."""
    before, _, behind = divided(page, name)
    return f"{before}{text}{behind}"


def run_penstock(
    verb: str,
    source: Path,
    model: str | Path,
    out: Path,
    store: str | Path,
    *options: str,
    **environment: str,
) -> dict[str, Any]:
    """Run a command over some media, and return its record. Raises RuntimeError with its errors
    where it fails."""
    where = ["--model", str(model), "--out", str(out), "--store", str(store), "--quiet"]
    done = subprocess.run(
        [*PENSTOCK, verb, str(source), *where, *options],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"penstock {verb} ended with {done.returncode}: {done.stderr}")
    record: dict[str, Any] = json.loads((out / "run.json").read_text(encoding="utf-8"))
    return record


def in_fresh_process(work: Callable[..., Found], *given: Any, **environment: str) -> Found:
    """What a function returns in a process of its own, which has the environment of a stage."""
    # Imported here, so that benchmarks of a run's own memory do not hold these modules.
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context
    from unittest.mock import patch

    with (
        patch.dict(os.environ, {**child_environment(), **environment}),
        ProcessPoolExecutor(1, get_context("spawn")) as pool,
    ):
        return pool.submit(work, *given).result()


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU seconds of a call, of all threads."""
    started = time.process_time()
    work()
    return time.process_time() - started


def soft_jpegs(count: int, size: tuple[int, int], quality: int) -> Iterator[bytes]:
    """JPEGs of so many pixels, of soft noise, which takes as much to decode as photographs."""
    import numpy as np
    from PIL import Image

    draw = np.random.default_rng(0)
    for _ in range(count):
        grain = draw.integers(0, 255, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
        file = io.BytesIO()
        picture = Image.fromarray(grain).resize(size, Image.Resampling.BICUBIC)
        picture.save(file, "JPEG", quality=quality)
        yield file.getvalue()


def unheard() -> EventReporter:
    """A report that nobody reads."""
    return EventReporter(os.open(os.devnull, os.O_WRONLY))


def taken(outcome: StageOutcome, device: str) -> int:
    """The most that a stage's process held: of a CPU above its imports, of a GPU above what was
    held before."""
    if device == "cpu":
        return int(outcome.peak_host_bytes - outcome.notes["loaded_bytes"])
    return outcome.peak_device_bytes - outcome.baseline_before_bytes


class Peak:
    """The most that this process held since it was made, looked at oftener than a stage looks."""

    def __init__(self) -> None:
        self._base = self._most = anonymous_bytes()
        threading.Thread(target=self._follow, daemon=True).start()

    def bytes(self) -> int:
        """Above what it held at first."""
        return max(self._most, anonymous_bytes()) - self._base

    def _follow(self) -> None:
        while True:
            self._most = max(self._most, anonymous_bytes())
            time.sleep(0.001)


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """One line of a table of figures and goals."""

    name: str
    value: float
    goal: float | None = None
    """Required minimum; None: the value is only reported."""
    form: str = "7.1f"
    """How the value is printed: percent, or a share with its decimals."""

    @property
    def missed(self) -> bool:
        return self.goal is not None and self.value < self.goal

    def __str__(self) -> str:
        goal = "" if self.goal is None else f"  asked for {self.goal:g}"
        return f"{self.name:58s}{self.value:{self.form}}{goal}{'  MISSED' * self.missed}"
