"""Takes one run from its configuration to its exit code, whoever launches the stages."""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from artifacts.captions import write_jsonl
from artifacts.errors import UsageError
from artifacts.store import fault_of
from flows.console.display import Display
from flows.job.about import notes, summary
from flows.job.budget import WithinBudget
from flows.job.config import CaptionConfig
from flows.job.launch import DirectLauncher, Forking, Launcher
from flows.job.leases import Lease, leased
from flows.job.namespace_notes import namespaces_aside, note_namespaces
from flows.job.prepare import Job, NothingToDo, out_folder, prepare, prepare_without_media
from flows.job.weights import fetch_parts
from flows.pipelines import EMBED, Pipeline
from flows.planning.ladder import Ladder
from flows.planning.start import ladder_of
from flows.results.outputs import failure_of, names_of, places, there_before
from flows.results.run_record import RunRecord
from flows.results.run_result import RunResult
from flows.results.vectors import VectorsWritten, vector_places, write_vectors
from flows.running.sequence import Sequence
from flows.running.steps import Steps
from flows.running.stopping import stopped_in_order
from stages.process.events import Event, Failed, Item, MemorySeen
from stages.process.forking import ForkServer
from stages.process.lock import holder, try_hold
from stages.process.stage_process import Listener

LauncherMaker = Callable[[Listener], Launcher]
OnBegin = Callable[[Job, RunRecord], None]
Filled = TypeVar("Filled", bound=VectorsWritten)


class Watch:
    """A listener that tells people and the record what the stages do."""

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

    def say(self, text: str) -> None:
        """Tell people something of the run."""
        self._display.say(text)

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
        elif isinstance(event, MemorySeen):
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
        self._display.stage(stage, total, done)

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
    ) -> Iterator[tuple[Sequence, RunRecord, Lease]]:
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
            record.write(force=True)
            if self._on_begin is not None:
                self._on_begin(job, record)
            self._ladder = ladder_of(job, self._taken)
            launcher = WithinBudget(launcher, job.budget, job.config, self._display.say)
            steps = Steps(job, launcher, record, self._ladder, self.tell, fetch, lease)
            try:
                yield Sequence(job, steps, record), record, lease
            finally:
                self._display.close()


def caption(
    config: CaptionConfig,
    display: Display,
    make_launcher: LauncherMaker = DirectLauncher,
    on_begin: OnBegin | None = None,
) -> RunResult:
    """Caption everything the configuration names. `on_begin` is given the job and the run's record
    before work begins. Raises PenstockError; what is finished stays done."""
    watch = Watch(display, on_begin)
    with (
        prepared(config, watch, make_launcher) as (job, launcher),
        watch.working(job, launcher) as (sequence, _, _),
    ):
        return sequence.run()


def embed(
    config: CaptionConfig,
    display: Display,
    make_launcher: LauncherMaker = DirectLauncher,
    on_begin: OnBegin | None = None,
) -> VectorsWritten:
    """Make vectors of everything the configuration names, with `on_begin` as `caption` has it.
    Raises PenstockError; what is finished stays done."""
    return make_vectors(config, display, vector_places, write_vectors, make_launcher, on_begin)


def make_vectors(
    config: CaptionConfig,
    display: Display,
    places_of: Callable[[Job], dict[str, str]],
    write_out: Callable[[Job], Filled],
    make_launcher: LauncherMaker = DirectLauncher,
    on_begin: OnBegin | None = None,
) -> Filled:
    """Make the same, and have them written by `write_out`, to the places that are told before work
    begins. Raises PenstockError."""
    watch = Watch(display, on_begin)
    with prepared(config, watch, make_launcher, EMBED) as (job, launcher):
        outputs = places_of(job)
        written: list[Filled] = []
        with watch.working(job, launcher, outputs=outputs) as (sequence, record, _):

            def write(last: bool) -> None:
                if last:
                    written.append(write_out(job))
                    record.value["rows"] = written[-1].vectors
                    record.fails(written[-1].failures)

            sequence.fill(write)
        return written[-1]


@contextlib.contextmanager
def prepared(
    config: CaptionConfig,
    watch: Watch,
    make_launcher: LauncherMaker,
    *pipelines: Pipeline,
) -> Iterator[tuple[Job, Launcher]]:
    """Yield the job of a command, and what starts its stages. It is taken through the first of
    `pipelines` that its model is for (none: it captions). Raises PenstockError."""
    refuse_file(out_folder(config))
    with stopped_in_order(), ForkServer() as forks:
        launcher = Forking(make_launcher(watch.listen), forks)
        try:
            if config.sources:
                job = prepare(config, launcher, watch.say, *pipelines)
            else:
                job = prepare_without_media(config, launcher, *pipelines)
        except NothingToDo as error:
            write_jsonl(out_folder(config) / "failures.jsonl", error.failures)
            raise
        yield job, launcher


def refuse_file(folder: Path) -> None:
    """Refuse a folder that cannot be made because a file is in its place. It is refused before a
    model is read, or downloaded. Raises EnvironmentFault."""
    there = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
    if not there.is_dir():
        raise fault_of(NotADirectoryError(errno.ENOTDIR, ""), folder)


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
