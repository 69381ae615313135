"""Ends the process when a library does not finish with one file.

It counts processor time, so a slow disk is waited for without limit. The parent process then
retries the open files one by one.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator

LIMIT_CPU_SECONDS = 300.0
"""CPU time of all threads without a new packet after which decoding counts as stuck. None of 60,000
randomly damaged files took 2 s."""
POLL_SECONDS = 1.0

_steps: dict[int, int] = {}


def step() -> None:
    """Record that this thread made progress: a packet was read."""
    thread = threading.get_ident()
    _steps[thread] = _steps.get(thread, 0) + 1


class Watchdog:
    """Watches every thread that is inside `over`; a context manager."""

    def __init__(self) -> None:
        self._since: dict[int, tuple[int, float]] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()

    @contextlib.contextmanager
    def over(self) -> Iterator[None]:
        """Watch one file from opening to end."""
        thread = threading.get_ident()
        step()
        with self._lock:
            self._since[thread] = _steps[thread], time.process_time()
        try:
            yield
        finally:
            with self._lock:
                del self._since[thread]

    def _follow(self) -> None:
        while not self._stop.wait(POLL_SECONDS):
            now = time.process_time()
            with self._lock:
                for thread, (steps, since) in self._since.items():
                    if _steps[thread] != steps:
                        self._since[thread] = _steps[thread], now
                    elif now - since > LIMIT_CPU_SECONDS:
                        os.kill(os.getpid(), signal.SIGABRT)
