"""Detects that no thread of this process makes progress any more.

A thread that gets no memory may wait forever and raise nothing. Python's own `Thread.start()` does
so when the new thread gets no memory before it reports that it runs. A thread that waits with the
interpreter's lock stops even the watchdog; a kernel timer covers that case.
"""

import signal
import threading
import time
from pathlib import Path

STUCK_SECONDS = 30.0
"""How long nothing may move before it never will."""
RECHECK_SECONDS = 5.0
"""When to look again after threads were seen that wait for something outside."""
IDLE_CPU_SECONDS = 0.05
"""Processor time that threads which only wait take at the most, all together, meanwhile."""
SILENT_SECONDS = 600.0
"""How long the interpreter's lock may be kept from everybody else."""
FUTEX = "202"
"""Number of the call in which a thread waits for another one; who sleeps will wake up."""


class DeadlockDetector:
    """Checks now and then whether anything moves. One thread uses it, whose own work does not
    count."""

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._cpu = 0.0

    def is_stuck(self) -> bool:
        """Return whether every other thread has done nothing for long but wait for the others."""
        now, cpu = time.monotonic(), time.process_time() - time.thread_time()
        if cpu - self._cpu > IDLE_CPU_SECONDS:
            self._since, self._cpu = now, cpu
            return False
        if now - self._since < STUCK_SECONDS:
            return False
        if all_wait():
            return True
        self._since = now - STUCK_SECONDS + RECHECK_SECONDS
        return False


def all_wait(tasks: Path = Path("/proc/self/task")) -> bool:
    """Return whether every thread but this one waits for another, and none for a disk or the
    network."""
    ours = str(threading.get_native_id())
    return all(_waits(task) for task in tasks.iterdir() if task.name != ours)


def _waits(task: Path) -> bool:
    try:
        return (task / "syscall").read_text().split()[0] == FUTEX
    except (OSError, IndexError):
        return True  # ended meanwhile, or not to be told


def rearm_alarm() -> None:
    """Have the kernel end this process when this is not called again in time."""
    signal.setitimer(signal.ITIMER_REAL, SILENT_SECONDS)
