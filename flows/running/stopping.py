"""Stops a run on a signal and keeps all finished work."""

import contextlib
import signal
import threading
from collections.abc import Iterator

from artifacts.errors import Interrupted
from flows.console.interrupts import repeating_dropped_interrupts

STOPPING = (signal.SIGTERM, signal.SIGHUP)
"""Signals handled like Ctrl-C: a request to end, and the end of the terminal or connection."""


@contextlib.contextmanager
def stopped_in_order() -> Iterator[None]:
    """End the run in the same way on Ctrl-C, SIGTERM and SIGHUP: the stage is stopped and the
    outputs are written. A signal that is already handled or ignored keeps its handler, as with
    Prefect or `nohup`. Raises Interrupted."""
    before = {number: signal.getsignal(number) for number in STOPPING}
    if threading.current_thread() is not threading.main_thread():
        before = {}
    handled = [number for number, handler in before.items() if handler is signal.SIG_DFL]
    hung_up = False

    def stop(number: int, _: object) -> None:
        nonlocal hung_up
        if number == signal.SIGHUP:
            hung_up = True
            # SIGHUP comes twice, from the kernel and from the shell. The outputs must still be
            # written.
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in handled:
        signal.signal(number, stop)
    try:
        with repeating_dropped_interrupts(stop):
            yield
    except KeyboardInterrupt as error:
        raise Interrupted(
            "stopped", hint="Finished work is kept; run the same command again to continue"
        ) from error
    finally:
        for number in handled:
            if number != signal.SIGHUP or not hung_up:
                signal.signal(number, signal.SIG_DFL)
