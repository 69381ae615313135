"""Repeats an interrupt that Python dropped."""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

REPEAT_SECONDS = 0.02
"""By then Python has left the code in which it ignores exceptions."""


@contextlib.contextmanager
def repeating_dropped_interrupts() -> Iterator[None]:
    """Raise KeyboardInterrupt again if the signal came while Python ran code whose exceptions it
    ignores: a finalizer, or the callback of a weak reference, which each import calls. Otherwise
    Ctrl-C would print a traceback and stop nothing."""
    before = sys.unraisablehook

    def hook(dropped: "UnraisableHookArgs") -> None:
        if issubclass(dropped.exc_type, KeyboardInterrupt):
            threading.Timer(REPEAT_SECONDS, _interrupt).start()
        else:
            before(dropped)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


def _interrupt() -> None:
    """Raise KeyboardInterrupt in the main thread, by a signal whose handler does that."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if callable(signal.getsignal(number)):
            # A real signal, so that a system call in which the thread waits ends.
            signal.pthread_kill(threading.main_thread().ident or 0, number)
            return
