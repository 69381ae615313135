"""Repeats an interrupt that Python dropped."""

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

REPEAT_SECONDS = 0.02
"""By then Python has left the code in which it ignores exceptions."""
NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def repeating_dropped_interrupts(
    handler: Callable[[int, Any], None] | None = None,
) -> Iterator[None]:
    """Raise KeyboardInterrupt again if the signal came while Python ran code whose exceptions it
    ignores: a finalizer, or the callback of a weak reference, which each import calls. Otherwise
    Ctrl-C would print a traceback and stop nothing.

    `handler` is the caller's own signal handler that raises KeyboardInterrupt. The interrupt is
    raised by a signal that has this handler or Python's, and not after the block.
    """
    if threading.current_thread() is not threading.main_thread():  # which alone gets signals
        yield
        return
    before, repeats = sys.unraisablehook, list[threading.Timer]()

    def hook(dropped: "UnraisableHookArgs") -> None:
        if issubclass(dropped.exc_type, KeyboardInterrupt):
            repeats.append(threading.Timer(REPEAT_SECONDS, _interrupt, [handler, hook]))
            repeats[-1].start()
        else:
            before(dropped)

    sys.unraisablehook = hook
    try:
        yield
        if any(not repeat.finished.is_set() for repeat in repeats):
            raise KeyboardInterrupt
    finally:
        for repeat in repeats:
            repeat.cancel()
        if sys.unraisablehook is hook:
            sys.unraisablehook = before


def _interrupt(
    handler: Callable[[int, Any], None] | None, hook: Callable[["UnraisableHookArgs"], None]
) -> None:
    """Raise KeyboardInterrupt in the main thread, once it has left `hook`: Python ignores
    exceptions there, too."""
    main = threading.main_thread().ident
    raising = (signal.default_int_handler, handler) if handler else (signal.default_int_handler,)
    number = next((n for n in NUMBERS if signal.getsignal(n) in raising), None)
    if main is None or number is None:
        return
    while _is_running(hook, main):
        time.sleep(REPEAT_SECONDS)
    # A real signal, so that a system call in which the thread waits ends.
    signal.pthread_kill(main, number)


def _is_running(function: Callable[..., None], thread: int) -> bool:
    frame = sys._current_frames().get(thread)
    while frame is not None and frame.f_code is not function.__code__:
        frame = frame.f_back
    return frame is not None
