"""Runs one half of a model for a server: a request queue, a worker process, and its restarts.

How it works:

1. `submit` queues a request under its cache key, and its caller awaits a future. More than 64 MiB
   of pending requests are refused with status 429.
2. `run` calls `_step` when something changed. The worker is away, waiting, loading or resident.
3. When a batch is due, the worker waits for memory from the device scheduler and starts a process.
4. A resident worker is sent each batch that is due, unless another half waits for the device.
5. Events resolve futures: records are answers, failures are refusals. An item that did not fit is
   queued again to run alone, and is refused after two attempts alone.
6. A smaller batch moves the ladder down. After an idle time the worker leaves the device.
7. When the process dies, its requests are queued again, each to run alone; a request that was alone
   twice is refused.
8. A process that has answered nothing for ten minutes is killed, as if it had died.
9. After three failed starts in a row, requests are refused for 10 s before the next start.

The module also defines the settings with which a server runs one half, and the results that the
server reads.
"""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from artifacts.errors import CannotFit, EnvironmentFault, Killed, ModelChanged, PenstockError
from flows.core.machine.launch import StageCall
from flows.core.plan.ladder import Ladder, Rung
from flows.execution.run_pipe import PATIENCE_SECONDS
from flows.interfaces.serve.batching import Batcher, QueuedRequest
from flows.interfaces.serve.device_scheduler import DeviceScheduler
from flows.interfaces.serve.metrics import HalfMetrics, Metrics
from flows.interfaces.serve.refusals import (
    HttpRefusal,
    bad_request,
    refusal_of_failure,
    unavailable,
)
from flows.interfaces.serve.temp_store import TempStore
from flows.interfaces.serve.worker_process import LauncherMaker, WorkerProcess
from stages.decode.engines import engine_of
from stages.process.events import (
    Answered,
    BatchShrunk,
    CaptionProgress,
    Event,
    Failed,
    MemorySample,
    StageNotes,
    TooLarge,
    Warned,
)
from stages.process.requests import Keyed, Make, Withdraw

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedAnswers:
    """Results of a half, ready to be returned to clients."""

    answers: Mapping[str, Any]
    """Result of each key; a refusal: it could not be read."""


class ModelWatch:
    """The model files of a service, and whether its halves found them changed when loading."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        """Set when the service must not answer any more."""
        self.error: ModelChanged | None = None
        """The detected change."""
        self.was_loaded = False
        """Whether a half was loaded from the files that the service was planned with."""

    def failed(self, error: PenstockError) -> bool:
        """Note that a half failed to load. Return whether its model files changed."""
        if not isinstance(error, ModelChanged):
            return False
        self.error = self.error or error
        self.changed.set()
        return True


@dataclass(frozen=True, kw_only=True, slots=True)
class HalfWorkerSpec:
    """How one half is run, and how its results are read."""

    name: str
    ladder: Ladder
    peak_bytes: Callable[[Rung], int]
    """Planned memory in bytes of a fallback rung."""
    call: Callable[[Rung, str, int], StageCall]
    """Returns the stage call for a rung, a pipe and a memory budget."""
    answers: Callable[[Iterable[str]], Mapping[str, Any]]
    """Returns the results of published keys."""
    max_batch: int
    """Requested batch size; 0: what fits."""
    item_weight: int
    """Planned weight of one request."""
    wait_seconds: float
    withdraws: bool = False
    """Whether the process can stop working on a withdrawn request."""
    idle_seconds: float
    """Seconds without requests after which the half leaves the device."""
    deadline: float
    """Seconds that a request may take."""
    model: ModelWatch = field(default_factory=ModelWatch)
    """Is notified when the half's files have changed."""

    def read(self, event: Event) -> Event | PublishedAnswers:
        """Return the results of published records, and other events unchanged. It runs on the
        thread that receives the events: the event loop reads no file."""
        if not isinstance(event, Answered):
            return event
        self.ladder.note_success(self.name)
        try:
            return PublishedAnswers(answers=self.answers(event.keys))
        except Exception as error:  # a store can fail in many ways; the thread must go on
            log.warning("%s: results cannot be read: %s", self.name, error)
            why = unavailable("the result cannot be read", "Ask again")
            return PublishedAnswers(answers=dict.fromkeys(event.keys, why))


CRASHED_TWICE = bad_request(
    "the model's process crashed twice on this request", "Send another file; see the server's log"
)
MAX_QUEUED_BYTES = 64 << 20
"""Largest size in bytes of all requests that wait for one half or are in flight."""
TOO_LARGE = bad_request(
    "the request does not fit in memory",
    "Send a smaller image, or start the server with more --memory",
)


def _refuse(requests: Iterable[QueuedRequest], why: HttpRefusal) -> None:
    for request in requests:
        if not request.answer.done():
            request.answer.set_exception(why)


STARTS = 3
"""Failed starts in a row after which requests are refused."""
RETRY_SECONDS = 10.0
"""Seconds until the next attempt after that."""
LOOK_SECONDS = 10.0
"""Seconds between two looks at a process that works."""


class RestartBackoff:
    """Counts the failed starts of one process, and delays the next one."""

    def __init__(self, name: str, model: ModelWatch) -> None:
        self._name = name
        self._model = model
        self._failed = 0
        self._retry_at = 0.0
        self._why: PenstockError | None = None

    @property
    def wait(self) -> float:
        """Return the seconds until the next start is allowed."""
        return max(0.0, self._retry_at - time.monotonic())

    @property
    def refusal(self) -> HttpRefusal | None:
        """Return the refusal for requests that arrive now, or None."""
        if self._why is None or not self.wait:
            return None
        error = f"{self._name} worker failed to start: {self._why.message}"
        # The hint of a killed process is that of a run.
        was_killed = isinstance(self._why, Killed)
        hint = "Ask again; see the server's log" if was_killed else self._why.hint
        return unavailable(error, hint, retry=self.wait)

    def started(self) -> None:
        """Reset the failure count after a successful start."""
        self._failed, self._why, self._retry_at = 0, None, 0.0
        self._model.was_loaded = True

    def failed(self, error: PenstockError, *, hopeless: bool = False) -> None:
        """Count a failed start. With `hopeless`, refuse requests at once: a retry would fail,
        too."""
        self._failed += 1
        hopeless = self._model.failed(error) or hopeless
        if hopeless or self._failed >= STARTS:
            self._why, self._retry_at = error, time.monotonic() + RETRY_SECONDS


AWAY, WAITING, LOADING, RESIDENT = "away", "waiting", "loading", "resident"


class HalfWorker:
    """One half with its queue and process. All methods run on the event loop."""

    def __init__(
        self,
        spec: HalfWorkerSpec,
        scheduler: DeviceScheduler,
        make_launcher: LauncherMaker,
        temp_store: TempStore,
        metrics: Metrics,
    ) -> None:
        self.name = spec.name
        self.state = AWAY
        self._spec = spec
        self._scheduler = scheduler
        self._make_launcher = make_launcher
        self._temp_store = temp_store
        self.metrics = HalfMetrics(metrics, spec.name)
        self.on_other_event: Callable[[Event], None] = lambda event: None
        """Gets each event that is not about a request's result."""
        self.batches = Batcher(max_size=1, max_weight=0, max_wait=spec.wait_seconds)
        self._heard = time.monotonic()
        """Time of the last event, or when an idle process was sent a batch."""
        self._began: float | None = None
        """Time since which the half has been busy."""
        self._process: WorkerProcess | None = None
        self._changed = asyncio.Event()
        self._closing = False
        self._leaving = self._yielding = False
        self._backoff = RestartBackoff(spec.name, spec.model)
        self.preload = False
        """Whether to load the half before its first request."""
        self._resize()

    @property
    def peak_bytes(self) -> int:
        return self._spec.peak_bytes(self._rung)

    @property
    def idle(self) -> bool:
        at_rest = self.batches.idle and (self._yielding or not self.batches.waiting)
        return at_rest and self.state in (RESIDENT, AWAY)

    @property
    def _rung(self) -> Rung:
        return self._spec.ladder.rung(self.name)

    @property
    def is_silent(self) -> bool:
        """Return whether it owes an answer, and nothing was heard for longer than that may take."""
        return not self.batches.idle and time.monotonic() - self._heard > self._spec.deadline

    async def submit(self, key: str, item: Keyed, weight: int) -> Any:
        """Queue a request and return its result. Raises HttpRefusal."""
        if (why := self._backoff.refusal or self._scheduler.refusal) is not None:
            raise why
        request = QueuedRequest(
            key=key,
            item=item,
            weight=weight,
            answer=asyncio.get_running_loop().create_future(),
            queued=time.monotonic(),
            size=len(json.dumps(item)),
        )
        if self.batches.waiting and self.batches.bytes + request.size > MAX_QUEUED_BYTES:
            raise HttpRefusal(429, "the queue is full", "Ask again later, or for less at once", 5.0)
        self.batches.waiting.append(request)
        self._changed.set()
        try:
            return await request.answer
        finally:
            if request.answer.cancelled():
                if self.batches.withdraw(request) and self._spec.withdraws:
                    list(self.batches.complete([key]))
                    self._rest()
                    if self._process:
                        self._process.send(Withdraw(keys=[key]))
                self._changed.set()

    def expect(self, count: int) -> None:
        """Announce requests that will be queued, or with a negative count that they were."""
        self.batches.expected += count
        if count < 0:
            self._changed.set()

    async def run(self) -> None:
        """Run until the worker is closed and its queue is empty."""
        while not (self._closing and not self.batches.waiting and self.batches.idle):
            self._changed.clear()
            wait = self._step()
            if wait != 0:
                wait = LOOK_SECONDS if wait is None else wait
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), wait)
        self.leave()
        while self._process is not None:
            self._changed.clear()
            await self._changed.wait()

    def close(self) -> None:
        """End after the waiting requests."""
        self._closing = True
        self._changed.set()

    def leave(self) -> None:
        """Let the process end and release the device."""
        self._leaving = True
        if self._process is not None:
            self._process.stop()

    def _step(self) -> float | None:
        """Start, feed or stop the process as needed. Return the seconds until the next check; None:
        wait for a change."""
        now = time.monotonic()
        due = self.batches.seconds_until_batch(now)
        if self.state == AWAY and (due is not None or self.preload):
            if (wait := self._backoff.wait) > 0:
                return wait
            self.state, self.preload = WAITING, False
            self._entering = asyncio.create_task(self._start())
        if self._process and not self.batches.idle and now - self._heard > PATIENCE_SECONDS:
            log.warning("%s: killed: it did not answer for %.0f s", self.name, now - self._heard)
            self._process.kill()
        if self.state != RESIDENT or self._leaving:
            return None
        self._yielding = self._scheduler.must_yield()
        if self.idle:
            self._scheduler.recheck()
        if self._yielding:
            return None
        if due is None:
            left = self._heard + self._spec.idle_seconds - now
            if self.batches.idle and left <= 0:
                self.leave()
            return max(0.01, left) if self.batches.idle else None
        if due > 0:
            return due
        if batch := self.batches.take():
            self.metrics.batch_sent(len(batch), [now - request.queued for request in batch])
            self._began, self._heard = self._began or now, now
            if self._process:
                self._process.send(Make(batches=[[request.item for request in batch]]))
        return 0

    async def _start(self) -> None:
        try:
            room = await self._scheduler.acquire(self)
        except (PenstockError, OSError) as error:
            fault = f"the device's lock cannot be taken: {error}"
            self._ended(None, EnvironmentFault(fault, hint="Ask again; see the server's log"))
            return
        self.state, self._leaving = LOADING, False
        rung = self._rung
        self._process = WorkerProcess(
            self._make_launcher,
            lambda pipe: self._spec.call(rung, pipe, room),
            self._temp_store.path(f"-{self.name}"),
            self._on_event,
            self._ended,
            self._spec.read,
        )

    def _on_event(self, event: Event | PublishedAnswers) -> None:
        if not isinstance(event, MemorySample):  # a thread takes these
            self._heard = time.monotonic()
        try:
            self._handle(event)
        except Exception:  # its request would wait for ever: the next process gets it again
            log.exception("%s: an event could not be handled", self.name)
            self.leave()
        self._changed.set()

    def _handle(self, event: Event | PublishedAnswers) -> None:
        match event:
            case StageNotes() if event.values.get("ready"):
                self.state = RESIDENT
                self._backoff.started()
            case StageNotes() if "engine" in event.values:
                self.batches.continuous = engine_of(event.values["engine"]).slots
            case CaptionProgress() if event.ended:
                self._answer({event.key: event})
            case PublishedAnswers():
                self._answer(event.answers)
            case Failed():
                _refuse(self.batches.complete([event.media]), refusal_of_failure(event))
                self._rest()
            case TooLarge():
                _refuse(self.batches.requeue_after_oom(event.key), TOO_LARGE)
                self._rest()
            case BatchShrunk():
                self._spec.ladder.on_event(self.name, event)
                self._resize(event.batch)
                log.warning("%s: batches of %d from now on", self.name, self.batches.max_size)
            case MemorySample() | StageNotes():
                self.metrics.on_event(event, self.peak_bytes)
            case Warned():
                log.warning("%s: %s", self.name, event.text)
            case _:
                self.on_other_event(event)

    def _answer(self, answers: Mapping[str, Any]) -> None:
        now = time.monotonic()
        self.metrics.batch_seconds.observe(now - (self._began or now))
        for request in self.batches.complete(answers):
            if isinstance(result := answers[request.key], HttpRefusal):
                _refuse([request], result)
            elif not request.answer.done():
                request.answer.set_result(result)
        self._rest()

    def _rest(self) -> None:
        self._began = None if self.batches.idle else time.monotonic()

    def _resize(self, max_size: int = 0) -> None:
        """Set the batch limits from the current rung."""
        max_batch = self._spec.max_batch or self._rung.batch
        self.batches.max_size = min(max_batch, self._rung.batch, max_size or max_batch)
        self.batches.max_weight = self.batches.max_size * self._spec.item_weight

    def _ended(self, live: WorkerProcess | None, error: PenstockError | None) -> None:
        """Clean up after the process ended, and plan its restart if it failed."""
        if live is not self._process:
            return
        was, self.state, self._process = self.state, AWAY, None
        self._changed.set()
        self.metrics.ended()
        self._scheduler.release(self)
        if error is not None or not self.batches.idle:
            self.metrics.restarted("memory" if isinstance(error, CannotFit) else "died")
            log.warning("%s: %s", self.name, error.message if error else "process exited")
            self._after(error, ready=was == RESIDENT)

    def _after(self, error: PenstockError | None, *, ready: bool) -> None:
        """Queue the lost requests again. After an out-of-memory error, move to a lower rung."""
        self._began = None
        _refuse(self.batches.requeue_after_crash(), CRASHED_TWICE)
        hopeless, largest, down = False, self._rung.batch, self._spec.ladder.step_down
        if isinstance(error, CannotFit):
            try:
                down(self.name, error, largest=largest, tokens=0, ready=ready)
            except CannotFit as fault:
                error, hopeless = fault, True
            self._resize()
        if error is not None and not ready:
            self._backoff.failed(error, hopeless=hopeless)
        if (why := self._backoff.refusal) is not None:
            _refuse(self.batches.waiting, why)
            self.batches.waiting.clear()
