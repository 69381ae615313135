"""Ends a process in which one thread computes for longer than its limit.

The check runs outside the process, because a thread may hold the interpreter's lock. It counts CPU
time, so a busy machine or many cores make no difference.
"""

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

POLL_SECONDS = 0.5
OVERTIME = signal.SIGVTALRM
"""Signal that ends the process. Neither users nor the kernel send it, and it writes no core
dump."""
UTIME, STIME = 11, 12
"""Positions of CPU times in a `stat` line, counted after the name."""


def limit_cpu_time(
    pid: int, send_signal: Callable[[int], object], seconds: float
) -> threading.Event:
    """Watch a process from a thread, which ends it when one of its threads computes for longer.
    Setting the returned event stops the watch."""
    done = threading.Event()

    def follow() -> None:
        while not done.wait(POLL_SECONDS):
            if busiest(pid) > seconds:
                send_signal(OVERTIME)
                return

    threading.Thread(target=follow, name="clock", daemon=True).start()
    return done


def busiest(pid: int) -> float:
    """Return the CPU time in seconds of a process's busiest thread; 0 if the process is gone."""
    try:
        return max(map(_seconds_of, Path(f"/proc/{pid}/task").glob("*/stat")), default=0.0)
    except OSError:  # ended while its threads were listed
        return 0.0


def work_done(pid: int) -> tuple[float, str]:
    """Return how much a process has done: the CPU time in seconds of its busiest thread, and what
    the kernel counts of its reads and writes; empty where that may not be seen."""
    try:
        counted = Path(f"/proc/{pid}/io").read_text(encoding="utf-8")
    except OSError:
        counted = ""
    return busiest(pid), counted


def _seconds_of(stat: Path) -> float:
    try:
        fields = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return (int(fields[UTIME]) + int(fields[STIME])) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):  # the thread has ended
        return 0.0
