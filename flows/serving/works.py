"""Keeps what one half is asked for, and hands out what it made; knows no process."""

import asyncio
import json
import time
from collections.abc import Iterable, Mapping
from typing import Any

from flows.serving.batching import Batches, QueuedWork
from flows.serving.metrics import HalfMetrics
from flows.serving.refusals import Refused, bad
from stages.process.live import Keyed

TO_BLAME = bad(
    "the model's process died of this twice", "Send another file; the server's log says more"
)
MOST_BYTES = 64 << 20
"""Bytes of works that wait for one half, or are with it."""
TOO_LARGE = bad(
    "this does not fit the memory there is",
    "Send a smaller picture, or start the server with more --memory",
)


class Works:
    """The works of one half, and when it was at them last."""

    def __init__(self, batches: Batches, metrics: HalfMetrics) -> None:
        self.batches = batches
        self._metrics = metrics
        self.used = time.monotonic()
        """Time when something was made last."""
        self._began: float | None = None
        """Time since when the half has been at something."""

    def add(self, key: str, member: Keyed, weight: int) -> QueuedWork:
        """Have one more wait. Raises Refused where too many bytes do."""
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        work = QueuedWork(
            key=key,
            member=member,
            weight=weight,
            answer=answer,
            queued=time.monotonic(),
            size=len(json.dumps(member)),
        )
        if self.batches.waiting and self.batches.bytes + work.size > MOST_BYTES:
            raise Refused(
                429, "too much is waiting to be read", "Ask again later, or for less at once", 5.0
            )
        self.batches.waiting.append(work)
        return work

    def take(self) -> list[QueuedWork]:
        """Return the next batch, which the half is at from now on."""
        batch, now = self.batches.take(), time.monotonic()
        if batch:
            self._metrics.left(len(batch), [now - work.queued for work in batch])
            self._began = self._began or now
        return batch

    def answer(self, found: Mapping[str, Any]) -> None:
        """Hand out what was made, by its keys."""
        now = time.monotonic()
        self._metrics.made(len(found), now - (self._began or now))
        for work in self.batches.made(found):
            if not work.answer.done():
                work.answer.set_result(found[work.key])
        self._rest(now)

    def refuse(self, keys: Iterable[str], why: Refused) -> None:
        """Say of some that they are not made."""
        _refuse(self.batches.made(keys), why)
        self._rest(time.monotonic())

    def unfit(self, key: str) -> None:
        """Have wait again what did not fit, unless it had the half to itself."""
        _refuse(self.batches.unfit(key), TOO_LARGE)
        self._rest(time.monotonic())

    def withdraw(self, work: QueuedWork, *, at_once: bool) -> bool:
        """Take back a work that nobody wants any more. Return whether the half is to be told;
        `at_once`, if it leaves off then, so that another takes its place."""
        if not (self.batches.withdraw(work) and at_once):
            return False
        list(self.batches.made([work.key]))
        self._rest(time.monotonic())
        return True

    def refuse_waiting(self, why: Refused) -> None:
        """Say of all that wait that they are not made."""
        _refuse(self.batches.waiting, why)
        self.batches.waiting.clear()

    def died(self) -> None:
        """Have what the half was at wait again, but for what it died of."""
        self._began = None
        _refuse(self.batches.died(), TO_BLAME)

    def _rest(self, now: float) -> None:
        self.used = now
        self._began = None if self.batches.idle else now


def _refuse(works: Iterable[QueuedWork], why: Refused) -> None:
    for work in works:
        if not work.answer.done():
            work.answer.set_exception(why)
