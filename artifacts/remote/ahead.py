"""Runs calls on threads that the program does not join, so that it can exit at once while a remote
server is still slow to respond.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from itertools import count
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
    left, lock = enumerate(items), threading.Lock()
    made: dict[int, Future[Result]] = {}
    came = threading.Condition(lock)
    room = threading.Semaphore(held) if held else None
    stopped, working = threading.Event(), threads

    def work() -> None:
        nonlocal working
        while True:
            if room is not None:
                room.acquire()
            with lock:
                number, item = (-1, None) if stopped.is_set() else next(left, (-1, None))
                if number < 0:
                    working -= 1
                    came.notify_all()
            if number < 0:
                if room is not None:  # for the next one to see that nothing is left
                    room.release()
                return
            result: Future[Result] = Future()
            _do(function, item, result)  # type: ignore[arg-type]
            with lock:
                made[number] = result
                came.notify_all()

    for _ in range(threads):
        threading.Thread(target=work, name="ahead", daemon=True).start()
    try:
        for number in count():
            with lock:
                while number not in made and working:
                    came.wait()
                if number not in made:
                    return
                result = made.pop(number)
            yield result.result()
            if room is not None:
                room.release()
    finally:
        stopped.set()
        if room is not None:
            room.release()


def _do(function: Callable[[Item], Result], item: Item, made: "Future[Result]") -> None:
    try:
        made.set_result(function(item))
    except BaseException as error:
        made.set_exception(error)
