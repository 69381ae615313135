"""Reads the next batches and writes the last one on the CPU while the device computes the current
one."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, InvalidStateError, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from typing import Generic, Self, TypeVar

from stages.process.events import IdleTime

Batch = TypeVar("Batch")
Rows = TypeVar("Rows")

PREFETCH_BATCHES = 2
"""Batches that are read and prepared while one is computed."""
BEHIND = 4
"""Batches that may wait to be written before computing waits for the disk."""


class Prefetched(Generic[Rows]):
    """An iterator over what is read of each batch, in order; a context manager that ends it.

    Some batches are read while one is computed. Waiting for the next batch also happens on the
    reader thread."""

    def __init__(
        self,
        batches: Iterable[Batch],
        read: Callable[[Batch], Rows],
        count: int = PREFETCH_BATCHES,
        idle: IdleTime | None = None,
    ) -> None:
        """Read `count` batches ahead. `idle` gets the times at which the caller waits."""
        source, self._idle = iter(batches), idle or IdleTime()

        def following() -> list[Rows]:
            for batch in source:
                return [read(batch)]
            return []

        self._following = following
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._ended: Future[list[Rows]] = Future()
        self._waiting = deque(self._pool.submit(following) for _ in range(count))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Rows:
        """Return what was read of the next batch. Raises what `read` raised."""
        self._idle.begin()
        first = self._ended if self._ended.done() else self._waiting.popleft()
        wait([first, self._ended], return_when=FIRST_COMPLETED)
        self._idle.end()
        if self._ended.done() or not (rows := first.result()):
            self.close()
            raise StopIteration
        self._waiting.append(self._pool.submit(self._following))
        return rows.pop()

    def close(self) -> None:
        """End the iteration, also for a thread that waits for the next batch: after an error, that
        batch may never arrive. Does not wait for the reader."""
        with suppress(InvalidStateError):
            self._ended.set_result([])
        self._pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def write_behind(
    write: Callable[[list[Rows]], None],
    refuse: Callable[[list[Rows], Exception], None] | None = None,
    on_error: Callable[[], object] = lambda: None,
) -> Iterator[Callable[[Rows], None]]:
    """Yield a function that passes results to `write`, which runs on another thread.

    Each call of `write` gets, in order, everything that arrived during the previous call. So one
    disk sync serves many batches. An error of `write` is raised at the next call of the function,
    or at the end, and nothing is written after it. The next call may never come: `on_error` is
    called at once, on the other thread, and ends what the caller waits for. Results that were
    passed before an error of the caller are still written.

    With `refuse`, which gets what an error left unwritten, the error is not raised and writing goes
    on.
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
                on_error()
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
