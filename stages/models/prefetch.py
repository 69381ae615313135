"""Reads the next batches and writes the last one on the CPU while the device computes the current
one."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from stages.process.events import IdleTime

Batch = TypeVar("Batch")
Rows = TypeVar("Rows")

PREFETCH_BATCHES = 2
"""Batches that are read and prepared while one is computed."""
BEHIND = 4
"""Batches that may wait to be written before computing waits for the disk."""


def prefetched(
    batches: Iterable[Batch],
    read: Callable[[Batch], Rows],
    count: int = PREFETCH_BATCHES,
    idle: IdleTime | None = None,
) -> Iterator[tuple[Batch, Rows]]:
    """Yield each batch with the result of `read`, in order.

    `count` batches are read while one is computed. Waiting for the next batch also happens on the
    reader thread; `idle` gets the times at which the caller waits for it. Raises what `read`
    raised."""
    source, idle = iter(batches), idle or IdleTime()

    def following() -> tuple[Batch, Rows] | None:
        for batch in source:
            return batch, read(batch)
        return None

    pool = ThreadPoolExecutor(max_workers=1)
    try:
        waiting = deque(pool.submit(following) for _ in range(count))
        while True:
            idle.begin()
            pair = waiting.popleft().result()
            idle.end()
            if pair is None:
                return
            waiting.append(pool.submit(following))
            yield pair
    finally:
        # Do not wait for the thread: after an error, the next requested batch may never arrive.
        pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def write_behind(
    write: Callable[[list[Rows]], None],
    refuse: Callable[[list[Rows], Exception], None] | None = None,
) -> Iterator[Callable[[Rows], None]]:
    """Yield a function that passes results to `write`, which runs on another thread.

    Each call of `write` gets, in order, everything that arrived during the previous call. So one
    disk sync serves many batches. An error of `write` is raised at the next call of the function,
    or at the end, and nothing is written after it. Results that were passed before an error of the
    caller are still written.

    With `refuse`, which gets what an error left unwritten, the error is not raised and writing goes
    on: the next call may never come.
    """
    waiting: deque[Rows] = deque()
    running: deque[Future[None]] = deque()
    failed = False

    def flush() -> None:
        nonlocal failed
        taken = [waiting.popleft() for _ in range(len(waiting))]
        if not taken or failed:
            return
        failed = True
        try:
            write(taken)
        except Exception as error:
            if refuse is None:
                raise
            refuse(taken, error)
        failed = False

    def later(made: Rows) -> None:
        while running and (running[0].done() or len(running) >= BEHIND):
            running.popleft().result()
        waiting.append(made)
        running.append(pool.submit(flush))

    with ThreadPoolExecutor(max_workers=1) as pool:
        yield later
        for flushed in running:
            flushed.result()
