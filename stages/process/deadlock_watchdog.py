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
"""How long no thread may make progress before the process counts as stuck."""
RECHECK_SECONDS = 5.0
"""Delay until the next check if a thread was waiting for something outside."""
IDLE_CPU_SECONDS = 0.05
"""Most CPU time in total that waiting threads use between two checks."""
SILENT_SECONDS = 600.0
"""How long one thread may hold the interpreter's lock."""
FUTEX = "202"
"""Number of the system call in which a thread waits for another thread. A sleeping thread uses
another call."""


class DeadlockDetector:
    """Checks at intervals whether any thread makes progress. The calling thread's own work does not
    count."""

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._cpu = 0.0

    def is_stuck(self) -> bool:
        """Return whether every other thread has only waited for other threads for STUCK_SECONDS."""
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
    """Return whether every thread but this one waits for another thread, and none for disk or
    network."""
    ours = str(threading.get_native_id())
    return all(_waits(task) for task in tasks.iterdir() if task.name != ours)


def _waits(task: Path) -> bool:
    try:
        return (task / "syscall").read_text().split()[0] == FUTEX
    except (OSError, IndexError):
        return True  # the thread has ended, or its state cannot be read


def rearm_alarm() -> None:
    """Restart the kernel timer that ends this process if this function is not called again in
    time."""
    signal.setitimer(signal.ITIMER_REAL, SILENT_SECONDS)
