"""Decides which requests form a batch, and when a half gets it.

A batch is sent when the half is idle. While it is busy, requests gather in the queue, so the busy
time is the batching window. An idle half waits for a moment only if more requests are known to be
on the way. A full second batch is sent while the first is running, so that it can be prepared. Over
HTTP, a fixed wait of 10 ms added 10 ms to every lone request and gained nothing at saturation.

After a half's process died, each request that it had is sent alone, so that the cause can be
identified. A request that was alone both times the process died is not retried.

A request that did not fit is also retried alone, since other requests may have used the memory it
needed. It gets two attempts alone, because that memory may not have been released at the first.
"""

import asyncio
import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from stages.process.requests import Keyed

FAILURES = 2
"""Failures alone with a half (crash or out of memory) before a request is refused."""
AT_ONCE = 2
"""Batches sent to a half at once: one is prepared while the other is computed."""


@dataclass(eq=False, kw_only=True, slots=True)
class QueuedRequest:
    """One request to a half."""

    key: str
    item: Keyed
    """Its fields, as sent to the half."""
    weight: int
    """Its pixels or tokens. They bound a batch in addition to the number of requests."""
    answer: "asyncio.Future[Any]"
    queued: float
    """Time of arrival."""
    size: int = 0
    """Bytes of its serialized fields."""
    isolated: bool = False
    """Whether it runs in a batch by itself, after a batch with it crashed or ran out of memory."""
    failures: int = 0
    """Failures while the half worked on nothing else."""


@dataclass(kw_only=True, slots=True)
class Batcher:
    """The requests that wait for one half, and those in flight."""

    max_size: int
    """Largest number of requests in a batch."""
    max_weight: int
    """Largest total weight of a batch of several requests."""
    max_wait: float
    """Longest time in seconds that an idle half waits for expected requests."""
    expected: int = 0
    """Requests that are being decoded and will be queued."""
    continuous: bool = False
    """Whether the half admits a request whenever one has finished (in-flight batching)."""
    waiting: deque[QueuedRequest] = field(default_factory=deque)
    in_flight: dict[str, list[QueuedRequest]] = field(default_factory=dict)
    """Requests sent to the half, by cache key."""
    _numbers: Iterator[int] = field(default_factory=itertools.count)
    _under_way: dict[int, set[str]] = field(default_factory=dict)
    """Batch number → keys of its unfinished requests."""

    def seconds_until_batch(self, now: float) -> float | None:
        """Return the seconds until the next batch is sent, 0 for now. Return None if an event must
        happen first."""
        while self.waiting and self.waiting[0].answer.done():  # its clients have disconnected
            self.waiting.popleft()
        if not self.waiting:
            return None
        if self.continuous and not (self._runs_isolated() or self.waiting[0].isolated):
            return 0.0 if len(self.in_flight) < self.max_size else None
        full = len(self.waiting) >= self.max_size
        if not self._under_way:
            lag = self.waiting[0].queued + self.max_wait - now
            return max(0.0, lag) if self.expected and not full else 0.0
        may_overlap = full and not self.waiting[0].isolated and not self._runs_isolated()
        return 0.0 if may_overlap and len(self._under_way) < AT_ONCE else None

    def take(self) -> list[QueuedRequest]:
        """Remove the next batch from the queue and return it. It is in flight from now on."""
        batch: list[QueuedRequest] = []
        weight = 0
        free = self.max_size - (len(self.in_flight) if self.continuous else 0)
        while self.waiting and len(batch) < free:
            request = self.waiting[0]
            heavy = weight + request.weight > self.max_weight
            if batch and (heavy or request.isolated or batch[0].isolated):
                break
            self.waiting.popleft()
            if request.answer.done():
                continue
            if request.key not in self.in_flight:
                batch.append(request)
                weight += request.weight
            self.in_flight.setdefault(request.key, []).append(request)
        if batch:
            self._under_way[next(self._numbers)] = {request.key for request in batch}
        return batch

    def complete(self, keys: Iterable[str]) -> Iterator[QueuedRequest]:
        """Yield the requests of these keys, which are finished or refused, and forget them."""
        for key in keys:
            yield from self.in_flight.pop(key, ())
            for number, left in list(self._under_way.items()):
                left.discard(key)
                if not left:
                    del self._under_way[number]

    def withdraw(self, request: QueuedRequest) -> bool:
        """Remove a request whose client has disconnected. Return True if the half has it and no
        other client waits for its result."""
        if request in self.waiting:
            self.waiting.remove(request)
            return False
        others = self.in_flight.get(request.key, [])
        if request in others:
            others.remove(request)
            return not others
        return False

    @property
    def bytes(self) -> int:
        """Return the size of all waiting and all sent requests."""
        in_flight = itertools.chain.from_iterable(self.in_flight.values())
        return sum(request.size for request in itertools.chain(self.waiting, in_flight))

    def requeue_after_crash(self) -> list[QueuedRequest]:
        """Queue the requests of a crashed half again, each to run alone. Return those to be
        refused."""
        requests = [request for requests in self.in_flight.values() for request in requests]
        only_one = len(self.in_flight) == 1
        self.in_flight.clear()
        self._under_way.clear()
        for request in requests:
            request.failures += only_one
        return self._requeue(requests)

    def requeue_after_oom(self, key: str) -> list[QueuedRequest]:
        """Queue a request that ran out of memory again, to run alone. Return it if it is to be
        refused, as `requeue_after_crash` does."""
        requests = list(self.complete([key]))
        for request in requests:
            request.failures += request.isolated
        return self._requeue(requests)

    def _requeue(self, requests: Iterable[QueuedRequest]) -> list[QueuedRequest]:
        blamed: list[QueuedRequest] = []
        retried: list[QueuedRequest] = []
        for request in requests:
            request.isolated = True
            (blamed if request.failures >= FAILURES else retried).append(request)
        self.waiting.extendleft(reversed(retried))
        return blamed

    @property
    def idle(self) -> bool:
        """Return whether the half has no unfinished batch."""
        return not self._under_way

    def _runs_isolated(self) -> bool:
        return any(request.isolated for requests in self.in_flight.values() for request in requests)
