"""Runs calls on threads that the program does not join, so that it can exit at once while a remote
server is still slow to respond.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
OnProgress = Callable[[int], None]
"""Gets the number of new bytes, and may raise to cancel."""


def run_detached(function: Callable[[Item], Result], item: Item) -> "Future[Result]":
    """Run a function on a thread that is not joined, and return its future."""
    future: Future[Result] = Future()
    threading.Thread(target=_do, args=(function, item, future), name="aside", daemon=True).start()
    return future


def map_prefetched(
    function: Callable[[Item], Result], items: Sequence[Item], threads: int
) -> Iterator[Result]:
    """Yield the results of a function in the order of the items. `threads` threads compute them
    before the caller asks. Raises the function's error when the caller reaches that item."""
    results = [Future[Result]() for _ in items]
    left, lock, stopped = zip(items, results, strict=True), threading.Lock(), threading.Event()

    def work() -> None:
        while not stopped.is_set():
            with lock:
                pair = next(left, None)
            if pair is None:
                return
            _do(function, *pair)

    for _ in range(threads):
        threading.Thread(target=work, name="ahead", daemon=True).start()
    try:
        for result in results:
            yield result.result()
    finally:
        stopped.set()


def _do(function: Callable[[Item], Result], item: Item, made: "Future[Result]") -> None:
    try:
        made.set_result(function(item))
    except BaseException as error:
        made.set_exception(error)
