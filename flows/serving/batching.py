"""Decides which requests form a batch, and when the batch is sent to a half.

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

from stages.process.live import Keyed

FAILURES = 2
"""Times that a half died of a request or did not fit it, alone with it, until it is to blame."""
AT_ONCE = 2
"""Batches that a half has at once: one is prepared while the other is computed."""


@dataclass(eq=False, kw_only=True, slots=True)
class QueuedRequest:
    """One request to a half."""

    key: str
    member: Keyed
    """Fields of it, as the half is told them."""
    weight: int
    """Pixels of it, or tokens: what bounds a batch beside its number."""
    answer: "asyncio.Future[Any]"
    queued: float
    """Time when it came."""
    size: int = 0
    """Bytes of its fields, as they are told."""
    alone: bool = False
    """Whether it goes by itself, since a half died of a batch that it was in, or did not fit it."""
    failures: int = 0
    """Times that it failed while the half had nothing else."""


@dataclass(kw_only=True, slots=True)
class Batcher:
    """The requests that wait for one half, and those that it is working on."""

    most: int
    """Most works of a batch."""
    most_weight: int
    """Most weight of a batch of several."""
    most_wait: float
    """Seconds that an idle half may wait for works that are on the way."""
    coming: int = 0
    """Works that are on the way."""
    flying: bool = False
    """Whether the half takes a work whenever one has ended, and none waits for a batch."""
    waiting: deque[QueuedRequest] = field(default_factory=deque)
    sent: dict[str, list[QueuedRequest]] = field(default_factory=dict)
    """Works that the half has, by their keys."""
    _numbers: Iterator[int] = field(default_factory=itertools.count)
    _under_way: dict[int, set[str]] = field(default_factory=dict)
    """Number of a batch → what the half has still to make of it."""

    def due(self, now: float) -> float | None:
        """Return the seconds after which the next batch leaves, 0 for now; None where something
        else must happen first."""
        while self.waiting and self.waiting[0].answer.done():  # nobody wants it any more
            self.waiting.popleft()
        if not self.waiting:
            return None
        if self.flying and not (self._is_alone() or self.waiting[0].alone):
            return 0.0 if len(self.sent) < self.most else None
        full = len(self.waiting) >= self.most
        if not self._under_way:
            late = self.waiting[0].queued + self.most_wait - now
            return max(0.0, late) if self.coming and not full else 0.0
        together = full and not self.waiting[0].alone and not self._is_alone()
        return 0.0 if together and len(self._under_way) < AT_ONCE else None

    def take(self) -> list[QueuedRequest]:
        """Return the next batch, which the half has from now on."""
        batch: list[QueuedRequest] = []
        weight = 0
        room = self.most - (len(self.sent) if self.flying else 0)
        while self.waiting and len(batch) < room:
            work = self.waiting[0]
            heavy = weight + work.weight > self.most_weight
            if batch and (heavy or work.alone or batch[0].alone):
                break
            self.waiting.popleft()
            if work.answer.done():
                continue
            if work.key not in self.sent:
                batch.append(work)
                weight += work.weight
            self.sent.setdefault(work.key, []).append(work)
        if batch:
            self._under_way[next(self._numbers)] = {work.key for work in batch}
        return batch

    def made(self, keys: Iterable[str]) -> Iterator[QueuedRequest]:
        """Yield the works that were made, or never will be, with their keys."""
        for key in keys:
            yield from self.sent.pop(key, ())
            for number, left in list(self._under_way.items()):
                left.discard(key)
                if not left:
                    del self._under_way[number]

    def withdraw(self, work: QueuedRequest) -> bool:
        """Take back a work whose asker has left. Return whether the half has it, and nobody else
        waits for what it makes of it."""
        if work in self.waiting:
            self.waiting.remove(work)
            return False
        sharing = self.sent.get(work.key, [])
        if work in sharing:
            sharing.remove(work)
            return not sharing
        return False

    @property
    def bytes(self) -> int:
        """Return the bytes of all that waits, and of all that the half has."""
        sent = itertools.chain.from_iterable(self.sent.values())
        return sum(work.size for work in itertools.chain(self.waiting, sent))

    def died(self) -> list[QueuedRequest]:
        """Let the works of a half that died wait again, each to go alone. Return those that are to
        blame, which do not."""
        works = [work for works in self.sent.values() for work in works]
        lone = len(self.sent) == 1
        self.sent.clear()
        self._under_way.clear()
        for work in works:
            work.failures += lone
        return self._again(works)

    def unfit(self, key: str) -> list[QueuedRequest]:
        """Let what did not fit wait again, to go alone. Return those that are to blame, as `died`
        does."""
        works = list(self.made([key]))
        for work in works:
            work.failures += work.alone
        return self._again(works)

    def _again(self, works: Iterable[QueuedRequest]) -> list[QueuedRequest]:
        blamed: list[QueuedRequest] = []
        again: list[QueuedRequest] = []
        for work in works:
            work.alone = True
            (blamed if work.failures >= FAILURES else again).append(work)
        self.waiting.extendleft(reversed(again))
        return blamed

    @property
    def idle(self) -> bool:
        """Return whether the half has nothing to do."""
        return not self._under_way

    def _is_alone(self) -> bool:
        return any(work.alone for works in self.sent.values() for work in works)
