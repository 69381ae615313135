"""Reads the next batches and writes the last one on the CPU while the device works on this one;
knows nothing of what a batch holds."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

Batch = TypeVar("Batch")
Rows = TypeVar("Rows")

AHEAD = 2
"""Batches that are read and prepared while one is computed."""


def read_ahead(
    batches: Sequence[Batch], read: Callable[[Batch], Rows]
) -> Iterator[tuple[Batch, Rows]]:
    """Each batch with what `read` made of it, in order. Raises what `read` raised."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        waiting = deque(pool.submit(read, batch) for batch in batches[:AHEAD])
        for index, batch in enumerate(batches):
            rows = waiting.popleft().result()
            if index + AHEAD < len(batches):
                waiting.append(pool.submit(read, batches[index + AHEAD]))
            yield batch, rows


@contextmanager
def write_behind() -> Iterator[Callable[[Callable[[], None]], None]]:
    """Gives a function that lets work be done beside the caller's, one piece at a time and in
    order. What a piece raised is raised at the next one, or at the end; a piece that was begun is
    finished also when the caller fails."""
    last: Future[None] | None = None

    def later(work: Callable[[], None]) -> None:
        nonlocal last
        if last is not None:
            last.result()
        last = pool.submit(work)

    with ThreadPoolExecutor(max_workers=1) as pool:
        yield later
        if last is not None:
            last.result()
