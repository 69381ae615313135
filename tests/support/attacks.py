"""The command attacked from outside: run under limits of memory and time, and held to the contract
of its exit codes and last words.

What an attack draws at random comes from `seeded`, so that the seed at the end of a test run brings
it back.
"""

import contextlib
import os
import random
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from scripts.run.stage_processes import family

PENSTOCK = [sys.executable, "-m", "flows.interfaces.cli.main"]
ROOT = Path(__file__).resolve().parents[2]
SEED = "PENSTOCK_TEST_SEED"
"""In the environment: what all random attacks of a test run follow from; conftest.py sets it."""
SECONDS = 120.0
"""No attack may keep a command longer."""
MEMORY_BYTES = 4 << 30
"""No process may have more memory of its own at once: far above what the demo model takes."""
LOOK_SECONDS = 0.05
CODES = (0, 1, 2, 3, 4, 5)


def seeded(*what: object) -> random.Random:
    """Random numbers of one attack, which depend on the run's seed and on `what` alone."""
    return random.Random(f"{os.environ[SEED]} {what!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How an attacked command ended."""

    code: int
    out: str
    err: str
    seconds: float
    peak_bytes: int
    """Of data, stacks and heap of the largest process that it started, itself included."""

    @property
    def text(self) -> str:
        return self.out + self.err

    def holds(self, *codes: int) -> None:
        """It ended by one of these exit codes, in words, within memory and time."""
        assert self.code in (codes or CODES), f"exit code {self.code}\n{self.text}"
        assert "Traceback" not in self.text, self.text
        assert self.peak_bytes < MEMORY_BYTES, f"{self.peak_bytes >> 20} MiB"
        if self.code != 0:
            assert self.text.strip(), f"exit code {self.code} without a word"


def attacked(
    *arguments: str | os.PathLike[str],
    cwd: Path = ROOT,
    env: Mapping[str, str] | None = None,
    seconds: float = SECONDS,
    command: list[str] | None = None,
) -> Outcome:
    """`penstock` with these arguments, or another `command` with them; one that does not end in
    time is killed, which is an error."""
    started = time.monotonic()
    running = subprocess.Popen(
        [*(command or PENSTOCK), *(os.fspath(argument) for argument in arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
        preexec_fn=_limit,
    )
    peak = _Peak(running.pid)
    try:
        out, err = running.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(running.pid, 9)
        out, err = running.communicate()
        raise AssertionError(f"no end after {seconds:.0f} s: {arguments}\n{out}{err}") from None
    finally:
        peak.stop()
    took = time.monotonic() - started
    return Outcome(code=running.returncode, out=out, err=err, seconds=took, peak_bytes=peak.bytes)


def _limit() -> None:
    # Twice what is asserted: who goes beyond is stopped before the machine suffers.
    resource.setrlimit(resource.RLIMIT_DATA, (2 * MEMORY_BYTES, 2 * MEMORY_BYTES))


class _Peak:
    """The most memory of its own that any process of a session had while it was looked at."""

    def __init__(self, session: int) -> None:
        self.bytes = 0
        self._session = session
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._done.set()
        self._thread.join()

    def _follow(self) -> None:
        while not self._done.wait(LOOK_SECONDS):
            for pid in self._pids():
                self.bytes = max(self.bytes, resident_bytes(pid, "RssAnon:"))

    def _pids(self) -> list[int]:
        return family(self._session)


def resident_bytes(pid: int, *kinds: str) -> int:
    """Memory of these kinds that a process has, as the kernel names them; 0 if it has ended."""
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(kinds))
    return 0
