"""Reads the next batches and writes the last one on the CPU while the device computes the current
one."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

Batch = TypeVar("Batch")
Rows = TypeVar("Rows")

PREFETCH_BATCHES = 2
"""Batches that are read and prepared while one is computed."""
BEHIND = 4
"""Batches that may wait to be written before the computing waits for the disk."""


def prefetched(
    batches: Iterable[Batch], read: Callable[[Batch], Rows], count: int = PREFETCH_BATCHES
) -> Iterator[tuple[Batch, Rows]]:
    """Yield each batch with what `read` made of it, in order; `count` are read while one is
    computed. Where the next batch has to be waited for, that too is done beside the computing.
    Raises what `read` raised."""
    source = iter(batches)

    def following() -> tuple[Batch, Rows] | None:
        for batch in source:
            return batch, read(batch)
        return None

    pool = ThreadPoolExecutor(max_workers=1)
    try:
        waiting = deque(pool.submit(following) for _ in range(count))
        while (found := waiting.popleft().result()) is not None:
            waiting.append(pool.submit(following))
            yield found
    finally:
        # Not waited for: after an error, the next batch of those that are told may never come.
        pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def write_behind(write: Callable[[list[Rows]], None]) -> Iterator[Callable[[Rows], None]]:
    """Yield a function that hands what was made to `write`, which works beside the caller.

    `write` gets at once, in order, all that came while it was busy: where much is made in a moment,
    one syncing of the disk serves many batches. What it raised is raised at the next handing over,
    or at the end, and nothing is written after it; what was handed over before the caller fails is
    written all the same.
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
        write(taken)
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
