"""Kills a process in which one thread computes for longer than its limit.

The check runs outside the process, because a thread may hold the interpreter's lock. It counts CPU
time, so a busy machine or many cores make no difference.
"""

import os
import signal
import threading
from pathlib import Path

from stages.process.fork_client import Process

POLL_SECONDS = 0.5
OVERTIME = signal.SIGVTALRM
"""Signal that ends the process. Neither users nor the kernel send it, and it writes no core
dump."""
UTIME, STIME = 11, 12
"""Positions of CPU times in a `stat` line, counted after the name."""


class CpuTimeLimit:
    """Watches a process from a thread until the process has ended."""

    def __init__(self, process: Process, seconds: float) -> None:
        self._process = process
        self._seconds = seconds
        self._done = threading.Event()
        threading.Thread(target=self._follow, name="clock", daemon=True).start()

    def stop(self) -> None:
        """Stop watching."""
        self._done.set()

    def _follow(self) -> None:
        while not self._done.wait(POLL_SECONDS):
            if busiest(self._process.pid) > self._seconds:
                self._process.send_signal(OVERTIME)
                return


def busiest(pid: int) -> float:
    """Return the CPU time in seconds of a process's busiest thread; 0 if the process is gone."""
    try:
        return max(map(_seconds_of, Path(f"/proc/{pid}/task").glob("*/stat")), default=0.0)
    except OSError:  # ended while its threads were listed
        return 0.0


def _seconds_of(stat: Path) -> float:
    try:
        values = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return (int(values[UTIME]) + int(values[STIME])) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):  # the thread has ended
        return 0.0
