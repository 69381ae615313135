"""One half that stays: takes what waits for it through its process, and begins that anew when it
ends; knows neither HTTP nor what is made.

It comes to the device when there is something to do, and leaves it after a while without.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from artifacts.errors import CannotFit, PenstockError
from flows.planning.rungs import Rung
from flows.serving.batching import Batches
from flows.serving.half_plan import HalfPlan
from flows.serving.live_stage import LauncherMaker, LiveStage
from flows.serving.metrics import Metrics
from flows.serving.published import LostAnswers, PublishedAnswers, read_published
from flows.serving.refusals import refusal_of_failure
from flows.serving.residence import Residence
from flows.serving.scratch import Scratch
from flows.serving.setbacks import Setbacks
from flows.serving.works import Works
from stages.decode.engines import engine_of
from stages.process.events import (
    Event,
    Failed,
    MemorySeen,
    Noted,
    Shrunk,
    TooLarge,
    Warned,
    Words,
)
from stages.process.live import WITHDRAWN, Keyed

log = logging.getLogger(__name__)

AWAY, WAITING, LOADING, RESIDENT = "away", "waiting", "loading", "resident"


class Half:
    """One half; all of it runs on the event loop."""

    def __init__(
        self,
        plan: HalfPlan,
        residence: Residence,
        make_launcher: LauncherMaker,
        scratch: Scratch,
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
        self.batches = Batches(most=1, most_weight=0, most_wait=plan.wait_seconds)
        self._works = Works(self.batches, self.metrics)
        self._live: LiveStage | None = None
        self._changed = asyncio.Event()
        self._closing = False
        self._leaving = self._gives_way = False
        self._setbacks = Setbacks(plan.name, plan.model)
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
                    self._live.tell({WITHDRAWN: [key]})
                self._changed.set()

    def has(self, key: str) -> bool:
        """Return whether its process was told to make this, and has not yet."""
        return key in self.batches.sent

    def note_coming(self, count: int) -> None:
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
        self._gives_way = self._residence.gives_way()
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
            self._live.tell([work.member for work in batch])
        return 0

    async def _enter(self) -> None:
        await self._residence.enter(self)
        self.state, self._leaving = LOADING, False
        rung, room = self._rung, self._residence.room_for(self)
        self._live = LiveStage(
            self._make_launcher,
            lambda pipe: self._plan.call(rung, pipe, room),
            self._scratch.path(f"-{self.name}"),
            self._hear,
            self._ended,
            partial(read_published, self._plan),
        )

    def _hear(self, event: Event | PublishedAnswers | LostAnswers) -> None:
        match event:
            case Noted() if event.values.get("ready"):
                self.state, self._works.used = RESIDENT, time.monotonic()
                self._setbacks.started()
            case Noted() if "engine" in event.values:
                self.batches.flying = engine_of(event.values["engine"]).slots
            case Words() if event.ended:
                self._works.answer({event.key: event})
            case PublishedAnswers():
                self._works.answer(event.answers)
            case LostAnswers():
                self._works.refuse(event.keys, event.why)
            case Failed():
                self._works.refuse([event.media], refusal_of_failure(event))
            case TooLarge():
                self._works.unfit(event.key)
            case Shrunk():
                self._plan.ladder.listen(self.name, event)
                self._resize(event.batch)
                log.warning("%s: batches of %d from now on", self.name, self.batches.most)
            case MemorySeen() | Noted():
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

    def _ended(self, live: LiveStage, error: PenstockError | None) -> None:
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
