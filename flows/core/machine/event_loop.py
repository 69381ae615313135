"""Runs asynchronous work from code that is not."""

import contextlib
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")
WAKE_SECONDS = 0.2


def on_a_loop(work: Coroutine[Any, Any, T]) -> T:
    """Return what `work` returns, on an event loop of its own: the caller's thread may run one. If
    the caller is stopped, the work is cancelled and not waited for: it may wait for minutes."""
    import asyncio

    loop, future = asyncio.new_event_loop(), Future[T]()

    def run() -> None:
        try:
            future.set_result(loop.run_until_complete(task))
        except BaseException as error:  # raised again in the caller's thread
            future.set_exception(error)
        finally:
            loop.close()

    task = loop.create_task(work)
    threading.Thread(target=run, daemon=True).start()
    try:
        while True:
            # A signal that another thread gets wakes no lock: its handler runs after the wait.
            with contextlib.suppress(TimeoutError):
                return future.result(WAKE_SECONDS)
            if future.done():
                return future.result()
    except BaseException:
        with contextlib.suppress(RuntimeError):  # the loop has ended by itself
            loop.call_soon_threadsafe(task.cancel)
        raise
