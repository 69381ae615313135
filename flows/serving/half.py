"""One half that stays: takes what waits for it in batches through its process, and begins that anew
when it ends; knows neither HTTP nor what is made.

It comes to the device when there is something to do, and leaves it after a while without. What runs
out of memory makes batches smaller, in its process or by starting it on a lower rung, and that is
remembered as for any run. A process that cannot be started is tried again after a while; meanwhile
requests are refused.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from artifacts.errors import CannotFit, PenstockError
from flows.job.launch import StageCall
from flows.planning.ladder import Ladder
from flows.planning.rungs import Rung
from flows.serving.batching import Batches, Work
from flows.serving.live_stage import LauncherMaker, LiveStage
from flows.serving.metrics import Metrics
from flows.serving.refusals import Refused, bad, unavailable
from flows.serving.residence import Residence
from flows.serving.scratch import Scratch
from stages.process.events import (
    Event,
    Failed,
    MemorySeen,
    Noted,
    Published,
    Shrunk,
    TooLarge,
    Warned,
)

log = logging.getLogger(__name__)

STARTS = 3
"""Times in a row that it ends before it is ready, until requests are refused."""
AGAIN_SECONDS = 10.0
"""After so long it is tried to start it again."""
TO_BLAME = "the model's process died of this twice"
AWAY, WAITING, LOADING, RESIDENT = "away", "waiting", "loading", "resident"


@dataclass(frozen=True, kw_only=True, slots=True)
class HalfPlan:
    """How one half is run, and what is made of what it tells."""

    name: str
    ladder: Ladder
    peak_bytes: Callable[[Rung], int]
    """Bytes that it takes on a rung, as planned."""
    call: Callable[[Rung, str, int], StageCall]
    """Rung, pipe and budget → the call of its process."""
    answers: Callable[[Iterable[str]], dict[str, Any]]
    """Keys that it has published → what is answered."""
    most: int
    """Most works of a batch that are asked for; 0: what fits."""
    weight: int
    """Weight of the works that a batch is planned of, each."""
    wait_seconds: float
    idle_seconds: float
    """Seconds without work after which it leaves the device."""


class Half:
    """One half; all of it runs on the event loop."""

    def __init__(
        self,
        plan: HalfPlan,
        residence: Residence,
        make_launcher: LauncherMaker,
        scratch: Scratch,
        metrics: Metrics,
        hear: Callable[[Event], None] = lambda event: None,
    ) -> None:
        """Make one that is away. `hear` is given every event that is not about works."""
        self.name = plan.name
        self.state = AWAY
        self.memory_bytes = 0
        self._plan = plan
        self._residence = residence
        self._make_launcher = make_launcher
        self._scratch = scratch
        self._metrics = metrics.of_half(plan.name)
        self._hear_more = hear
        self.batches = Batches(most=1, most_weight=0, most_wait=plan.wait_seconds)
        self._live: LiveStage | None = None
        self._changed = asyncio.Event()
        self._closing = False
        self._leaving = False
        self._failed_starts = 0
        self._again_at = 0.0
        self._trouble = ""
        self._used = time.monotonic()
        self._began: float | None = None
        self._is_wanted = False
        self._resize()

    @property
    def peak_bytes(self) -> int:
        return self._plan.peak_bytes(self._rung)

    @property
    def idle(self) -> bool:
        return self.batches.idle and self.state in (RESIDENT, AWAY)

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

    async def make(self, key: str, member: dict[str, Any], weight: int) -> Any:
        """Return what is made of this. Raises Refused."""
        if self._trouble and time.monotonic() < self._again_at:
            raise unavailable(self._trouble, retry=self._again_at - time.monotonic())
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        work = Work(key=key, member=member, weight=weight, answer=answer, queued=time.monotonic())
        self.batches.waiting.append(work)
        self._changed.set()
        return await answer

    def warm(self) -> None:
        """Come to the device before there is anything to do."""
        self._is_wanted = True
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

    def kill(self) -> None:
        """End its process at once."""
        if self._live is not None:
            self._live.kill()

    def _step(self) -> float | None:
        """Do what there is to do. Return the seconds after which to look again; None: when
        something has changed."""
        now = time.monotonic()
        due = self.batches.due(now)
        if self.state == AWAY and (due is not None or self._is_wanted):
            if now < self._again_at:
                return self._again_at - now
            self.state, self._is_wanted = WAITING, False
            self._entering = asyncio.create_task(self._enter())
        if self.state != RESIDENT or self._leaving:
            return None
        if self._residence.gives_way(self):
            if self.batches.idle:
                self._residence.look()
            return None
        if due is None:
            left = self._used + self._plan.idle_seconds - now
            if self.batches.idle and left <= 0:
                self.leave()
            return max(0.01, left) if self.batches.idle else None
        if due > 0:
            return due
        self._send()
        return 0

    def _send(self) -> None:
        batch = self.batches.take()
        if not batch:
            return
        assert self._live is not None
        now = time.monotonic()
        self._metrics.left(len(batch), [now - work.queued for work in batch])
        if self._began is None:
            self._began = now
        self._live.tell([work.member for work in batch])

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
        )

    def _hear(self, event: Event) -> None:
        match event:
            case Noted() if event.values.get("ready"):
                self.state, self._failed_starts, self._trouble = RESIDENT, 0, ""
                self._changed.set()
            case Published():
                self._answer(event.keys)
            case Failed():
                self._refuse([event.media], bad(event.message, event.hint))
            case TooLarge():
                hint = "Send a smaller picture, or start the server with more --memory"
                self._refuse([event.key], bad("this does not fit the memory there is", hint))
            case Shrunk():
                self._plan.ladder.listen(self.name, event)
                self._resize(event.batch)
                log.warning("%s: batches of %d from now on", self.name, self.batches.most)
            case MemorySeen():
                self.memory_bytes = (
                    event.host_bytes if not event.device_bytes else event.device_bytes
                )
                self._metrics.memory(self.memory_bytes, self.peak_bytes)
            case Warned():
                log.warning("%s: %s", self.name, event.text)
            case _:
                self._hear_more(event)

    def _answer(self, keys: Iterable[str]) -> None:
        """Hand out what was published."""
        self._plan.ladder.worked(self.name)
        found = self._plan.answers(keys)
        self._metrics.made(len(found), self._since_began())
        for work in self.batches.made(keys):
            if not work.answer.done():
                work.answer.set_result(found[work.key])
        self._rest()

    def _refuse(self, keys: Iterable[str], why: Refused) -> None:
        for work in self.batches.made(keys):
            if not work.answer.done():
                work.answer.set_exception(why)
        self._rest()

    def _rest(self) -> None:
        now = time.monotonic()
        self._used = now
        self._began = None if self.batches.idle else now
        self._changed.set()

    def _since_began(self) -> float:
        return 0.0 if self._began is None else time.monotonic() - self._began

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
        self.memory_bytes, self._began = 0, None
        self._metrics.memory(0, 0)
        self._residence.left(self)
        if error is not None or not self.batches.idle:
            why = "memory" if isinstance(error, CannotFit) else "died"
            self._metrics.restarted(why)
            log.warning("%s: %s", self.name, error.message if error else "its process ended")
            self._after(error, ready=was == RESIDENT)
        self._changed.set()

    def _after(self, error: PenstockError | None, *, ready: bool) -> None:
        """Have what it was at made again, on a lower rung where it was memory that it lacked."""
        for work in self.batches.died():
            if not work.answer.done():
                work.answer.set_exception(bad(TO_BLAME, "Its log says more; send another picture"))
        down = not isinstance(error, CannotFit)
        if isinstance(error, CannotFit):
            try:
                largest = self._rung.batch
                self._plan.ladder.down(self.name, error, largest=largest, tokens=0, ready=ready)
                down = True
            except CannotFit as fault:
                error = fault
            self._resize()
        self._failed_starts = 0 if ready else self._failed_starts + 1
        if error is not None and (self._failed_starts >= STARTS or (not down and not ready)):
            self._give_up(error)

    def _give_up(self, error: PenstockError) -> None:
        """Refuse what waits, for a while."""
        self._trouble = f"the {self.name} half cannot be had: {error.message}"
        self._again_at = time.monotonic() + AGAIN_SECONDS
        self._failed_starts = STARTS - 1
        for work in self.batches.waiting:
            if not work.answer.done():
                work.answer.set_exception(
                    unavailable(self._trouble, error.hint, retry=AGAIN_SECONDS)
                )
        self.batches.waiting.clear()
