"""Runs calls on threads that the program does not join, so that it can exit at once while a remote
server is still slow to respond.
"""

import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from itertools import islice
from queue import SimpleQueue
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
OnProgress = Callable[[int], None]
"""Gets the number of new bytes, and may raise to cancel."""


def run_detached(function: Callable[[Item], Result], item: Item) -> "Future[Result]":
    """Run a function on a thread that is not joined, and return its future."""
    made: Future[Result] = Future()
    threading.Thread(target=_do, args=(function, item, made), name="aside", daemon=True).start()
    return made


def map_prefetched(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int, held: int = 0
) -> Iterator[Result]:
    """Yield the results of a function in the order of the items. `threads` threads compute them
    before the caller asks. At most `held` finished results wait (0: no limit). Raises the
    function's error when the caller reaches that item."""
    left, lock, stopped = iter(items), threading.Lock(), threading.Event()
    room = threading.Semaphore(held or sys.maxsize)
    results: SimpleQueue[Future[Result] | None] = SimpleQueue()
    """Results in the order of the items, those that are computed now among them; None: no more."""

    def work() -> None:
        while True:
            room.acquire()
            with lock:
                taken = [] if stopped.is_set() else list(islice(left, 1))
                result = Future[Result]() if taken else None
                results.put(result)
            if result is None:
                room.release()  # for the next one to see that nothing is left
                return
            _do(function, taken[0], result)

    for _ in range(threads):
        threading.Thread(target=work, name="ahead", daemon=True).start()
    try:
        while threads and (result := results.get()) is not None:
            yield result.result()
            room.release()
    finally:
        stopped.set()
        room.release()


def _do(function: Callable[[Item], Result], item: Item, made: "Future[Result]") -> None:
    try:
        made.set_result(function(item))
    except BaseException as error:
        made.set_exception(error)
