"""Runs a rebuild from its configuration to its exit code. It encodes missing features, and removes
unused ones on request.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from artifacts.captions import Failure
from artifacts.packs import RecordSet
from artifacts.record_union import RecordUnion
from artifacts.store import open_store
from artifacts.words import counted
from flows.console.display import Display
from flows.console.units import duration, size
from flows.job.prepare import Job, prepare
from flows.job.replanning import replanned_once
from flows.ledger.ledger import Ledger
from flows.ledger.namespaces import Variant
from flows.ledger.tasks import Medium
from flows.ledger.weights import bytes_to_fetch
from flows.machine.launch import DirectLauncher, ForkingLauncher
from flows.machine.leases import RunningJob, running_jobs
from flows.options.commands import RunOptions
from flows.options.rebuild import RebuildConfig, RebuildRun
from flows.pipelines import KEPT, Pipeline, parts_of
from flows.planning.sizes import unencoded
from flows.results.outputs import failures_of
from flows.running.run import LauncherMaker
from flows.running.run_observer import OnBegin, RunObserver
from flows.running.stopping import stopped_in_order
from flows.upkeep.rebuild_record import (
    Difference,
    Reach,
    RebuildRecord,
    begun,
    difference,
    job_digest,
    last_record,
    other_records,
    record_of,
    same,
    write_record,
)
from stages.process.fork_client import ForkServer


@dataclass(kw_only=True, slots=True)
class Pruned:
    """The records that were removed, or would be."""

    records: int = 0
    bytes: int = 0
    left: tuple[Reach, ...] = ()
    """Features that could not be removed now, because a running job may need them."""


def prune(
    job: Job, name: str, now: RebuildRecord, running: Sequence[RunningJob], *, dry_run: bool
) -> Pruned:
    """Remove what the rebuilds of the job called `name` made and `now` does not refer to."""
    records = [now, *other_records(job.store, name)]
    held = frozenset[str]().union(*(other.namespaces for other in running))
    made = Pruned()
    for reach in now.past:
        if reach.features in held:
            made.left += (reach,)
            continue
        loose = reach.without(
            content
            for record in records
            if record.features == reach.features
            for content in record.reach.contents
        )
        for pipeline in KEPT:  # a namespace is of one of them; in the others nothing is found
            frames, features = pipeline
            tasks = _ledger(job, loose, pipeline)
            chunks = tasks.tasks(_media(loose))
            keys = {task[features.writes] for task in chunks}
            _remove(tasks[features.writes], keys, made, dry_run)
            _remove(tasks.refused[features.name], keys, made, dry_run)
        if reach.frames in held:
            continue
        looked_at = {
            digest
            for record in records
            if record.frames == reach.frames
            for digest, _ in record.reach.contents
        }
        keys = {task[frames.writes] for task in chunks if task.medium.digest not in looked_at}
        _remove(tasks[frames.writes], keys, made, dry_run)
    return made


def _ledger(job: Job, reach: Reach, pipeline: Pipeline) -> Ledger:
    frames, features = (stage.writes for stage in pipeline)
    of_prompts = [features] if any(prompt for _, prompt in reach.contents) else []
    of = {frames: reach.frames, features: reach.features}
    return Ledger(job.store, pipeline, Variant(of=of, prompted=frozenset(of_prompts)))


def _media(reach: Reach) -> list[Medium]:
    return [Medium(digest=d, path="", kind="", prompt=p) for d, p in sorted(reach.contents)]


def _remove(
    record_set: RecordSet | RecordUnion, keys: set[str], made: Pruned, dry_run: bool
) -> None:
    found = [key for key in keys if key in record_set]
    made.records += len(found)
    made.bytes += sum(record_set.place(key).length for key in found)
    if not dry_run:
        record_set.remove(found)


@dataclass(frozen=True, kw_only=True, slots=True)
class RebuildOptions:
    """The options of a rebuild besides its sources and model settings."""

    name: str = ""
    """Tells apart jobs over the same sources, such as those of two models."""
    prune: bool = False
    """Remove what this job made and nothing refers to any more."""
    dry_run: bool = False
    """Say what would be done, and do nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Missing:
    """The contents to be encoded."""

    files: int = 0
    """Number of contents of which something is missing; equal files are one."""
    chunks: int = 0
    frames: int = 0
    frame_bytes: int = 0
    """Bytes of frames, while they are there."""
    feature_bytes: int = 0
    guessed: bool = False
    """Whether some are known by their headers alone."""

    @classmethod
    def of(cls, job: Job) -> "Missing":
        found = unencoded(job)
        return cls(
            files=len(found),
            chunks=sum(estimate.chunks for estimate, _ in found),
            frames=sum(estimate.frames for estimate, _ in found),
            frame_bytes=sum(estimate.frame_bytes for estimate, _ in found),
            feature_bytes=sum(estimate.feature_bytes for estimate, _ in found),
            guessed=any(guessed for _, guessed in found),
        )


@dataclass(kw_only=True, slots=True)
class RebuildResult:
    """The result of a rebuild, or of its dry run."""

    files: int
    difference: Difference
    missing: Missing
    seconds_a_chunk: float | None
    """Seconds that encoding took last time; None: never done here with this model and sampling."""
    fetch_bytes: int
    """Bytes of weights that have to be downloaded for that."""
    dry_run: bool
    encoded: int = 0
    """Chunks encoded."""
    removed: int = 0
    """Records of features and frames that nothing refers to."""
    removed_bytes: int = 0
    kept: str = ""
    """Reason why nothing was removed although it was asked; empty when it was."""
    failures: list[Failure] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """Return 0 when all is there, 1 when some files failed."""
        return 1 if self.failures else 0

    def row(self) -> dict[str, int]:
        """Return the counts, as a row of a table."""
        found = self.difference
        return {
            "unchanged": found.unchanged,
            "added": found.added,
            "changed": found.changed,
            "removed": found.removed,
            "chunks encoded": self.encoded,
            "records removed": 0 if self.dry_run else self.removed,
        }

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "exit_code": self.exit_code}

    def plan_lines(self) -> list[str]:
        """Return why something differs, and what is to be done about it."""
        missing, lines = self.missing, list(self.difference.why)
        if not missing.chunks:
            return lines
        about = "about " if missing.guessed else ""
        took = "unknown until some were made"
        if self.seconds_a_chunk is not None:
            took = f"about {duration(self.seconds_a_chunk * missing.chunks)}"
        if self.fetch_bytes:
            lines.append(f"to download: {size(self.fetch_bytes)} of weights")
        chunks, files = counted(missing.chunks, "chunk"), counted(missing.files, "file")
        frames = f"{about}{counted(missing.frames, 'frame')}, {size(missing.frame_bytes)}"
        return [
            *lines,
            f"to encode: {about}{chunks} of {files}, {frames} while they are there",
            f"to store: about {size(missing.feature_bytes)} of features; time: {took}",
        ]

    def line(self) -> str:
        """Return the outcome in one line."""
        would = "would encode" if self.dry_run else "encoded"
        chunks = self.missing.chunks if self.dry_run else self.encoded
        since = f"{self.difference.line()} since the last rebuild"
        text = f"{counted(self.files, 'file')}: {since}; {would} {counted(chunks, 'chunk')}"
        if self.removed:
            verb = "would remove" if self.dry_run else "removed"
            text += f", {verb} {counted(self.removed, 'record')} of {size(self.removed_bytes)}"
        failed = f", {len(self.failures)} failed" if self.failures else ""
        return f"{text}{failed}{f'; nothing was removed: {self.kept}' if self.kept else ''}"


def rebuild(
    config: RebuildConfig,
    options: RebuildOptions,
    display: Display,
    make_launcher: LauncherMaker = DirectLauncher,
    on_begin: OnBegin | None = None,
) -> RebuildResult:
    """Bring what is kept of everything the configuration names up to date: features, or vectors.
    What it says of text and of output files has no effect. `on_begin` is given the job and the
    run's record before work begins. Raises PenstockError; what is finished stays done."""
    name = job_digest(config.sources, options.name)
    # Logs and the record of the run lie in the store: a rebuild has no outputs.
    out = open_store(config.store_url).local / "logs" / f"rebuild-{name[:12]}"
    run = RebuildRun(
        **{each.name: getattr(config, each.name) for each in fields(config)}, out=str(out)
    )

    def attempt() -> RebuildResult:
        return _rebuilt(run, name, options, display, RunObserver(display, on_begin), make_launcher)

    return replanned_once(attempt, display.say)


def _rebuilt(
    config: RunOptions,
    name: str,
    options: RebuildOptions,
    display: Display,
    observer: RunObserver,
    make_launcher: LauncherMaker,
) -> RebuildResult:
    with stopped_in_order(), ForkServer() as forks:
        launcher = ForkingLauncher(make_launcher(observer.on_event), forks)
        job = prepare(config, launcher, display.say, *KEPT, progress=display.fetched, alone=True)
        last = last_record(job.store, name)
        now = record_of(job, last)
        to_make = Missing.of(job)
        result = RebuildResult(
            files=len(job.files),
            difference=difference(last, now),
            missing=to_make,
            fetch_bytes=bytes_to_fetch(job.model, parts_of(job.pipeline) if to_make.chunks else []),
            seconds_a_chunk=now.seconds_a_chunk,
            dry_run=options.dry_run,
        )
        if options.dry_run:
            _prune(job, name, now, running_jobs(job.store), options, result)
            result.failures = failures_of(job)
            return result
        for line in result.plan_lines():
            display.say(line)
        words = ("rebuilding, with its logs in", "give it another --name")
        with observer.pipeline_for_job(job, launcher, *words) as (runner, ran, lease):
            if result.missing.chunks:
                write_record(job.store, name, begun(last, now))
                now = replace(now, number=now.number + 1)
            runner.compute_records()
            made = job.pipeline[-1].writes
            job.ledger[made].use(task[made] for task in job.ledger.tasks(job.media))
            entries = [ran.stage(stage.name) for stage in job.pipeline]
            result.encoded = entries[-1]["items"]
            if result.encoded:
                seconds = sum(entry["seconds"] for entry in entries)
                now = replace(now, seconds_a_chunk=seconds / result.encoded)
            now = replace(now, past=_prune(job, name, now, lease.others(), options, result))
            if result.missing.chunks or not same(last, now):
                write_record(job.store, name, now)
        result.failures = failures_of(job)
    return result


def _prune(
    job: Job,
    name: str,
    now: RebuildRecord,
    running: Sequence[RunningJob],
    options: RebuildOptions,
    result: RebuildResult,
) -> tuple[Reach, ...]:
    """Remove what nothing refers to, if that was asked; returns what is still to be removed."""
    if not options.prune:
        return now.past
    if job.config.limit is not None:
        result.kept = "--limit leaves files out that are there"
        return now.past
    if job.failures:
        # A disk that is not there must not cost what was made of the files on it.
        result.kept = f"{job.failures[0].media_path} could not be looked at"
        return now.past
    made = prune(job, name, now, running, dry_run=options.dry_run)
    result.removed, result.removed_bytes = made.records, made.bytes
    return made.left
