"""Claims the next batch of requests on a thread, while the running sequences are decoded."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from stages.decode.protocol import DecodeRequest


class RequestPrefetcher:
    """Yields the requests in order; a thread claims the next batch ahead of time."""

    def __init__(
        self, batches: Iterable[Sequence[DecodeRequest]], executor: ThreadPoolExecutor
    ) -> None:
        self._batches = iter(batches)
        self._executor = executor
        self._ready: deque[DecodeRequest] = deque()
        self._next: Future[Sequence[DecodeRequest] | None] | None = None
        self._exhausted = False

    def next_request(self, *, wait: bool) -> DecodeRequest | None:
        """Return the next request. Return None at the end, or without `wait` while the next batch
        is not ready. At most one batch is claimed ahead of time."""
        while not self._ready and not self._exhausted:
            self._claim_next()
            assert self._next is not None
            if not (wait or self._next.done()):
                return None
            batch, self._next = self._next.result(), None
            self._exhausted = batch is None
            self._ready.extend(batch or ())
        if not self._exhausted:
            self._claim_next()
        return self._ready.popleft() if self._ready else None

    def _claim_next(self) -> None:
        if self._next is None:
            self._next = self._executor.submit(next, self._batches, None)


@contextmanager
def prefetch_requests(batches: Iterable[Sequence[DecodeRequest]]) -> Iterator[RequestPrefetcher]:
    """Yield a prefetcher. After the block, no thread reads `batches` any more."""
    with ThreadPoolExecutor(max_workers=1) as executor:
        yield RequestPrefetcher(batches, executor)
