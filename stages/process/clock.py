"""Kills a process in which one thread computes for longer than its limit.

It watches from outside, because a thread may hold the interpreter's lock against all others. It
counts processor time, so neither a busy machine nor many cores make a difference.
"""

import os
import signal
import threading
from pathlib import Path

from stages.process.fork_client import Process

POLL_SECONDS = 0.5
OVERTIME = signal.SIGVTALRM
"""Signal that ends it: no person and no kernel sends that, and it leaves no image of the memory."""
UTIME, STIME = 11, 12
"""Where processor time stands in a line of `stat`, counted behind the name."""


class CpuTimeLimit:
    """Watches a process from a thread until the process has ended."""

    def __init__(self, process: Process, seconds: float) -> None:
        self._process = process
        self._seconds = seconds
        self._done = threading.Event()
        threading.Thread(target=self._follow, name="clock", daemon=True).start()

    def stop(self) -> None:
        """Look no more."""
        self._done.set()

    def _follow(self) -> None:
        while not self._done.wait(POLL_SECONDS):
            if busiest(self._process.pid) > self._seconds:
                self._process.send_signal(OVERTIME)
                return


def busiest(pid: int) -> float:
    """Return seconds of processor time that the busiest thread of a process has had. 0 when it is
    gone."""
    try:
        return max(map(_seconds_of, Path(f"/proc/{pid}/task").glob("*/stat")), default=0.0)
    except OSError:  # ended while its threads were listed
        return 0.0


def _seconds_of(stat: Path) -> float:
    try:
        values = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return (int(values[UTIME]) + int(values[STIME])) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):  # ended meanwhile
        return 0.0
