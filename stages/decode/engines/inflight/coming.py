"""Takes the rows to come in a thread beside those in flight. Knows nothing of what is done with
them.

To take the next batch may mean to wait until another process ends one, which may itself wait for
one of ours: so nobody waits here while there are rows to go on with.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from stages.decode.protocol import Asked


class Coming:
    """The rows to come, in order."""

    def __init__(self, batches: Iterable[Sequence[Asked]], beside: ThreadPoolExecutor) -> None:
        self._batches = iter(batches)
        self._beside = beside
        self._here: deque[Asked] = deque()
        self._next: Future[Sequence[Asked] | None] | None = None
        self._ended = False

    def take(self, *, wait: bool) -> Asked | None:
        """Return the next row; None when there is no other, or when it has to be waited for and
        `wait` is not set. One batch at most is here before it is asked for."""
        while not self._here and not self._ended:
            self._ask()
            assert self._next is not None
            if not (wait or self._next.done()):
                return None
            batch, self._next = self._next.result(), None
            self._ended = batch is None
            self._here.extend(batch or ())
        if not self._ended:
            self._ask()
        return self._here.popleft() if self._here else None

    def _ask(self) -> None:
        if self._next is None:
            self._next = self._beside.submit(next, self._batches, None)


@contextmanager
def coming(batches: Iterable[Sequence[Asked]]) -> Iterator[Coming]:
    """Take rows until the block ends; then nobody is at the batches any more."""
    with ThreadPoolExecutor(max_workers=1) as beside:
        yield Coming(batches, beside)
