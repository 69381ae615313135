"""Reports stage events to the console and the run record. Starts no stage."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any, get_args

from artifacts.errors import UsageError
from artifacts.schema import Half
from artifacts.store import fault_of
from flows.console.display import Display
from flows.console.units import size
from flows.job.about import notes, summary
from flows.job.namespace_notes import namespaces_aside, note_namespaces
from flows.job.prepare import Job
from flows.ledger.weights import fetch_parts
from flows.machine.budget import WithinBudget
from flows.machine.launch import Launcher
from flows.machine.leases import Lease, leased
from flows.pipelines import STAGES
from flows.planning.ladder import Ladder
from flows.planning.start import ladder_of
from flows.results.outputs import failure_of, names_of, places, there_before
from flows.results.run_record import RunRecord
from flows.running.pipeline_runner import PipelineRunner
from flows.running.stage_runner import StageRunner
from stages.process.events import Event, Failed, Item, MemorySample
from stages.process.lock import holder, try_hold


@contextlib.contextmanager
def claiming(job: Job) -> Iterator[Lease]:
    """Keep what the job needs from being deleted by others, and note what it is of."""
    namespaces = [namespace for variant in job.ledger.variants for namespace in variant.of.values()]
    namespaces += namespaces_aside(job)
    with leased(job.store, list(dict.fromkeys(namespaces)), job.out) as lease:
        note_namespaces(job)
        yield lease


@contextlib.contextmanager
def only_run_in(job: Job, doing: str, another: str) -> Iterator[None]:
    """Hold the lock of a job's folder, so that two runs never destroy each other's files. Raises
    UsageError when another run holds it, EnvironmentFault when the folder cannot be made."""
    path = job.out / ".lock"
    try:
        job.out.mkdir(parents=True, exist_ok=True)
        lock = try_hold(path)
    except OSError as error:
        raise fault_of(error, job.out) from error
    if lock is None:
        raise UsageError(
            f"{holder(path)} is {doing} {job.out} already",
            hint=f"Wait for it, watch it with `penstock status {job.out}`, or {another}",
        )
    with lock:
        yield


OnBegin = Callable[[Job, RunRecord], None]


class RunObserver:
    """Reports stage events to the console and the run record."""

    def __init__(self, display: Display, on_begin: OnBegin | None = None) -> None:
        self._display = display
        self._on_begin = on_begin
        self._job: Job | None = None
        self._record: RunRecord | None = None
        self._ladder: Ladder | None = None
        self._items: dict[str, int] = {}
        self._names: dict[str, str] = {}
        """Digest of a medium → its name, filled once one has failed: finding one takes a look at
        all."""

    def close(self) -> None:
        """Tell no more of what is done."""
        self._display.close()

    def doing(self, text: str) -> None:
        """Tell people what is done before the first stage."""
        self._display.doing(text)

    def say(self, text: str) -> None:
        """Tell people something of the run."""
        self._display.say(text)

    def fetched(self, here: int, total: int) -> None:
        """Tell people that so many bytes of the media are here."""
        self._display.fetched(here, total)

    def listen(self, stage: str, event: Event) -> None:
        """Hear an event of a stage."""
        record, job = self._record, self._job
        self._display.listen(stage, event)
        if record is None or job is None:
            return
        if self._ladder is not None:
            self._ladder.listen(stage, event)
        if isinstance(event, Item):
            self._items[stage] += 1
            record.live(stage, self._items[stage])
        elif isinstance(event, MemorySample):
            record.memory(stage, asdict(event))
        elif isinstance(event, Failed):
            self._names = self._names or names_of(job)
            failure = failure_of(job, self._names, stage, event)
            self._display.fail(**failure)
            record.fail(stage, failure)

    def tell(self, stage: str, total: int, done: int) -> None:
        """Hear that a stage is about to start."""
        self._items[stage] = 0
        if self._record is not None:
            self._record.begin(stage)
        self._display.stage(stage, total, done, self._loads(stage))

    def _loads(self, stage: str) -> str:
        """Return what a stage loads, for people; empty where it loads nothing."""
        part = STAGES[stage].part if stage in STAGES else None
        if self._job is None or not part or part not in self._job.model.settings:
            return ""
        half = "half" if part in get_args(Half) else "encoder"
        return f"the {part} {half}, {size(self._job.model.best(part).weight_bytes)}"

    def _taken(self, rung: Mapping[str, Any], text: str) -> None:
        """Tell that a stage is run on another rung than it was asked for."""
        if self._record is not None:
            self._record.rung(rung)
        self._display.say(text)

    @contextlib.contextmanager
    def working(
        self,
        job: Job,
        launcher: Launcher,
        doing: str = "",
        another: str = "give another --out",
        outputs: Mapping[str, str] | None = None,
    ) -> Iterator[tuple[PipelineRunner, RunRecord, Lease]]:
        """Yield the sequence of a job, which nobody else works on and nobody deletes under it.
        `outputs` are the places of what it writes, if that is not captions."""

        fetch = partial(fetch_parts, job.model, display=self._display)
        doing = doing or f"{job.pipeline[-1].verb} into"
        with only_run_in(job, doing, another), claiming(job) as lease:
            for note in filter(None, [*notes(job), job.budget.warning]):
                self._display.say(note)
            self._job, self._record = job, (record := RunRecord(job.out, job.stages))
            told = {"plan": summary(job), "outputs": places(job), "earlier": there_before(job)}
            record.value.update(told if outputs is None else {**told, "outputs": dict(outputs)})
            record.value["media"]["total"] = len(job.by_file) + len(job.failures)
            record.write(force=True)
            if self._on_begin is not None:
                self._on_begin(job, record)
            self._ladder = ladder_of(job, self._taken)
            launcher = WithinBudget(launcher, job.budget, job.config, self._display.say)
            steps = StageRunner(job, launcher, record, self._ladder, self.tell, fetch, lease)
            try:
                yield PipelineRunner(job, steps, record, self._display.say), record, lease
            finally:
                self._display.close()
