"""Runs one half of a model for a server: a request queue, a worker process, and its restarts.

How it works:

1. `make` queues a request under its cache key, and its caller awaits a future. More than 64 MiB
   of pending requests are refused with status 429.
2. `run` calls `_step` when something changed. The worker is away, waiting, loading or resident.
3. When a batch is due, the worker waits for memory from the device scheduler and starts a process.
4. A resident worker is sent each batch that is due, unless another half waits for the device.
5. Events resolve futures: records are answers, failures are refusals. An item that did not fit is
   queued again to run alone, and is refused after two attempts alone.
6. A smaller batch moves the ladder down. After an idle time the worker leaves the device.
7. When the process dies, its requests are queued again, each to run alone; a request that was alone
   twice is refused.
8. After three failed starts in a row, requests are refused for 10 s before the next start.
"""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from artifacts.errors import CannotFit, PenstockError
from flows.planning.rungs import Rung
from flows.serving.batching import Batcher, QueuedRequest
from flows.serving.half_plan import HalfWorkerSpec
from flows.serving.live_stage import LauncherMaker, WorkerProcess
from flows.serving.metrics import HalfMetrics, Metrics
from flows.serving.model_watch import ModelWatch
from flows.serving.published import LostAnswers, PublishedAnswers, read_published
from flows.serving.refusals import HttpRefusal, bad_request, refusal_of_failure, unavailable
from flows.serving.residence import DeviceScheduler
from flows.serving.scratch import TempStore
from stages.decode.engines import engine_of
from stages.process.events import (
    BatchShrunk,
    CaptionProgress,
    Event,
    Failed,
    MemorySample,
    StageNotes,
    TooLarge,
    Warned,
)
from stages.process.live import WITHDRAWN, Keyed

TO_BLAME = bad_request(
    "the model's process died of this twice", "Send another file; the server's log says more"
)
MOST_BYTES = 64 << 20
"""Bytes of works that wait for one half, or are with it."""
TOO_LARGE = bad_request(
    "this does not fit the memory there is",
    "Send a smaller picture, or start the server with more --memory",
)


class RequestQueue:
    """The request queue of one half, and the time of its last activity."""

    def __init__(self, batches: Batcher, metrics: HalfMetrics) -> None:
        self.batches = batches
        self._metrics = metrics
        self.used = time.monotonic()
        """Time when something was made last."""
        self._began: float | None = None
        """Time since when the half has been at something."""

    def add(self, key: str, member: Keyed, weight: int) -> QueuedRequest:
        """Have one more wait. Raises Refused where too many bytes do."""
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        work = QueuedRequest(
            key=key,
            member=member,
            weight=weight,
            answer=answer,
            queued=time.monotonic(),
            size=len(json.dumps(member)),
        )
        if self.batches.waiting and self.batches.bytes + work.size > MOST_BYTES:
            raise HttpRefusal(
                429, "too much is waiting to be read", "Ask again later, or for less at once", 5.0
            )
        self.batches.waiting.append(work)
        return work

    def take(self) -> list[QueuedRequest]:
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

    def refuse(self, keys: Iterable[str], why: HttpRefusal) -> None:
        """Say of some that they are not made."""
        _refuse(self.batches.made(keys), why)
        self._rest(time.monotonic())

    def unfit(self, key: str) -> None:
        """Have wait again what did not fit, unless it had the half to itself."""
        _refuse(self.batches.unfit(key), TOO_LARGE)
        self._rest(time.monotonic())

    def withdraw(self, work: QueuedRequest, *, at_once: bool) -> bool:
        """Take back a work that nobody wants any more. Return whether the half is to be told;
        `at_once`, if it leaves off then, so that another takes its place."""
        if not (self.batches.withdraw(work) and at_once):
            return False
        list(self.batches.made([work.key]))
        self._rest(time.monotonic())
        return True

    def refuse_waiting(self, why: HttpRefusal) -> None:
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


def _refuse(works: Iterable[QueuedRequest], why: HttpRefusal) -> None:
    for work in works:
        if not work.answer.done():
            work.answer.set_exception(why)


STARTS = 3
"""Times in a row that a process ends before it is ready, until requests are refused."""
AGAIN_SECONDS = 10.0
"""After so long it is tried to start it again."""


class RestartBackoff:
    """Counts the failed starts of one process, and delays the next one."""

    def __init__(self, name: str, model: ModelWatch) -> None:
        self._name = name
        self._model = model
        self._failed = 0
        self._again_at = 0.0
        self._why: PenstockError | None = None

    @property
    def wait(self) -> float:
        """Return the seconds until it may be started again."""
        return max(0.0, self._again_at - time.monotonic())

    @property
    def refusal(self) -> HttpRefusal | None:
        """Return why requests are refused now; None where they are not."""
        if self._why is None or not self.wait:
            return None
        error = f"the {self._name} half cannot be had: {self._why.message}"
        return unavailable(error, self._why.hint, retry=self.wait)

    def started(self) -> None:
        """Hear that it is ready."""
        self._failed, self._why, self._again_at = 0, None, 0.0
        self._model.loaded()

    def failed(self, error: PenstockError, *, hopeless: bool = False) -> None:
        """Hear that it ended before it was ready; `hopeless`, if that will be so until something
        else changes."""
        self._failed += 1
        hopeless = self._model.failed(error) or hopeless
        if hopeless or self._failed >= STARTS:
            self._why, self._again_at = error, time.monotonic() + AGAIN_SECONDS


log = logging.getLogger(__name__)

AWAY, WAITING, LOADING, RESIDENT = "away", "waiting", "loading", "resident"


class HalfWorker:
    """One half with its queue and process. All methods run on the event loop."""

    def __init__(
        self,
        plan: HalfWorkerSpec,
        residence: DeviceScheduler,
        make_launcher: LauncherMaker,
        scratch: TempStore,
        metrics: Metrics,
    ) -> None:
        """Make one that is away."""
        self.name = plan.name
        self.state = AWAY
        self._plan = plan
        self._residence = residence
        self._make_launcher = make_launcher
        self._scratch = scratch
        self.metrics = metrics.of_half(plan.name)
        self.hear_more: Callable[[Event], None] = lambda event: None
        """Function that is given each event that is not about works."""
        self.batches = Batcher(most=1, most_weight=0, most_wait=plan.wait_seconds)
        self._works = RequestQueue(self.batches, self.metrics)
        self._live: WorkerProcess | None = None
        self._changed = asyncio.Event()
        self._closing = False
        self._leaving = self._gives_way = False
        self._setbacks = RestartBackoff(plan.name, plan.model)
        self.is_wanted = False
        """Whether it comes to the device before there is anything to do."""
        self._resize()

    @property
    def peak_bytes(self) -> int:
        return self._plan.peak_bytes(self._rung)

    @property
    def idle(self) -> bool:
        at_rest = self.batches.idle and (self._gives_way or not self.batches.waiting)
        return at_rest and self.state in (RESIDENT, AWAY)

    @property
    def pid(self) -> int:
        """Return the id of its process; 0 without one."""
        return self._live.pid if self._live else 0

    @property
    def _rung(self) -> Rung:
        return self._plan.ladder.rung(self.name)

    def depth(self) -> int:
        """Return how many works wait."""
        return len(self.batches.waiting)

    async def make(self, key: str, member: Keyed, weight: int) -> Any:
        """Return what is made of this. Raises Refused."""
        if (why := self._setbacks.refusal or self._residence.refusal) is not None:
            raise why
        work = self._works.add(key, member, weight)
        self._changed.set()
        try:
            return await work.answer
        finally:
            if work.answer.cancelled():
                if self._works.withdraw(work, at_once=self._plan.withdraws) and self._live:
                    self._live.send({WITHDRAWN: [key]})
                self._changed.set()

    def has(self, key: str) -> bool:
        """Return whether its process was told to make this, and has not yet."""
        return key in self.batches.sent

    def expect(self, count: int) -> None:
        """Hear that works are on the way, or that some are not any more."""
        self.batches.coming += count
        if count < 0:
            self._changed.set()

    async def run(self) -> None:
        """Go on until it is closed and nothing waits."""
        while not (self._closing and not self.batches.waiting and self.batches.idle):
            self._changed.clear()
            wait = self._step()
            if wait != 0:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), wait)
        self.leave()
        while self._live is not None:
            self._changed.clear()
            await self._changed.wait()

    def close(self) -> None:
        """End after what waits."""
        self._closing = True
        self._changed.set()

    def leave(self) -> None:
        """Give the device back."""
        self._leaving = True
        if self._live is not None:
            self._live.stop()

    def _step(self) -> float | None:
        """Do what there is to do. Return the seconds after which to look again; None: when
        something has changed."""
        now = time.monotonic()
        due = self.batches.due(now)
        if self.state == AWAY and (due is not None or self.is_wanted):
            if (wait := self._setbacks.wait) > 0:
                return wait
            self.state, self.is_wanted = WAITING, False
            self._entering = asyncio.create_task(self._enter())
        if self.state != RESIDENT or self._leaving:
            return None
        self._gives_way = self._residence.must_yield()
        if self.idle:
            self._residence.look()
        if self._gives_way:
            return None
        if due is None:
            left = self._works.used + self._plan.idle_seconds - now
            if self.batches.idle and left <= 0:
                self.leave()
            return max(0.01, left) if self.batches.idle else None
        if due > 0:
            return due
        if (batch := self._works.take()) and self._live:
            self._live.send([work.member for work in batch])
        return 0

    async def _enter(self) -> None:
        await self._residence.enter(self)
        self.state, self._leaving = LOADING, False
        rung, room = self._rung, self._residence.granted_bytes(self)
        self._live = WorkerProcess(
            self._make_launcher,
            lambda pipe: self._plan.call(rung, pipe, room),
            self._scratch.path(f"-{self.name}"),
            self._hear,
            self._ended,
            partial(read_published, self._plan),
        )

    def _hear(self, event: Event | PublishedAnswers | LostAnswers) -> None:
        match event:
            case StageNotes() if event.values.get("ready"):
                self.state, self._works.used = RESIDENT, time.monotonic()
                self._setbacks.started()
            case StageNotes() if "engine" in event.values:
                self.batches.flying = engine_of(event.values["engine"]).slots
            case CaptionProgress() if event.ended:
                self._works.answer({event.key: event})
            case PublishedAnswers():
                self._works.answer(event.answers)
            case LostAnswers():
                self._works.refuse(event.keys, event.why)
            case Failed():
                self._works.refuse([event.media], refusal_of_failure(event))
            case TooLarge():
                self._works.unfit(event.key)
            case BatchShrunk():
                self._plan.ladder.listen(self.name, event)
                self._resize(event.batch)
                log.warning("%s: batches of %d from now on", self.name, self.batches.most)
            case MemorySample() | StageNotes():
                self.metrics.hear(event, self.peak_bytes)
            case Warned():
                log.warning("%s: %s", self.name, event.text)
            case _:
                self.hear_more(event)
        self._changed.set()

    def _resize(self, most: int = 0) -> None:
        """Take the sizes of batches from the rung."""
        found = self._plan.most or self._rung.batch
        self.batches.most = min(found, self._rung.batch, most or found)
        self.batches.most_weight = self.batches.most * self._plan.weight

    def _ended(self, live: WorkerProcess, error: PenstockError | None) -> None:
        """Hear that its process has ended, for whatever reason."""
        if live is not self._live:
            return
        was, self.state, self._live = self.state, AWAY, None
        self.metrics.ended()
        self._residence.left(self)
        if error is not None or not self.batches.idle:
            self.metrics.restarted("memory" if isinstance(error, CannotFit) else "died")
            log.warning("%s: %s", self.name, error.message if error else "its process ended")
            self._after(error, ready=was == RESIDENT)
        self._changed.set()

    def _after(self, error: PenstockError | None, *, ready: bool) -> None:
        """Have what it was at made again, on a lower rung where it was memory that it lacked."""
        self._works.died()
        hopeless, largest, down = False, self._rung.batch, self._plan.ladder.down
        if isinstance(error, CannotFit):
            try:
                down(self.name, error, largest=largest, tokens=0, ready=ready)
            except CannotFit as fault:
                error, hopeless = fault, True
            self._resize()
        if error is not None and not ready:
            self._setbacks.failed(error, hopeless=hopeless)
        if (why := self._setbacks.refusal) is not None:
            self._works.refuse_waiting(why)
