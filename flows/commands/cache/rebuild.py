"""Runs a rebuild of stored features from its configuration to its exit code.

It encodes missing features. The files and settings of a job's last rebuild are stored, and compared
with the current ones.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from artifacts.digests import digest_of
from artifacts.disk.json_records import read_record
from artifacts.disk.json_shapes import Json
from artifacts.records.eight_bits import computed_namespace, form_of
from artifacts.records.packs import Record, RecordSet
from artifacts.records.store import Store, open_store
from artifacts.schema import ChunkIndex, values_of
from artifacts.texts.captions import Failure
from artifacts.wording import counted
from flows.core.checkpoint.weights import bytes_to_fetch
from flows.core.console.display import Display
from flows.core.console.lines import duration, size
from flows.core.job.prepare import Job, prepare
from flows.core.job.record_notes import settings_of
from flows.core.job.replan import replanned_once
from flows.core.ledger.tasks import Medium, Task, keys_of
from flows.core.machine.launch import DirectLauncher, ForkingLauncher
from flows.core.options.commands import MediaOptions, RebuildRun, RunOptions
from flows.core.pipelines import KEPT, encoder_of, parts_of
from flows.core.plan.sizes import Estimate, estimates, tile_count
from flows.execution.run import LauncherMaker, stopped_in_order
from flows.execution.run_observer import OnBegin, RunObserver
from flows.outputs.write import failures_of
from stages import hear
from stages.process.fork_client import ForkServer

KIND = "rebuilds"
Content = tuple[str, str]
"""Digest of a medium, and the prompt if features depend on it, else an empty text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RebuildRecord:
    """A record of one rebuild, for the next one of the same job."""

    number: int
    features: str
    settings: Mapping[str, Any]
    """Settings that determine the features, from `settings_of`."""
    files: tuple[tuple[str, str, str], ...]
    """Absolute path, digest and prompt of each file; for the prompt, see `Content`."""
    seconds_per_chunk: float | None = None
    """Encoding time per chunk when this namespace was last extended."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """Counts of files, by path, that differ from the job's last rebuild."""

    unchanged: int = 0
    added: int = 0
    changed: int = 0
    removed: int = 0
    why: tuple[str, ...] = ()
    """Reasons why even unchanged files are encoded again; empty if they are not."""

    @property
    def counts(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in ("unchanged", "added", "changed", "removed")}

    def line(self) -> str:
        return ", ".join(f"{count} {name}" for name, count in self.counts.items())


def last_record(store: Store, job: str) -> RebuildRecord | None:
    """Return the newest record of a job."""
    record_set = RecordSet(store, KIND, job)
    metas = map(record_set.meta, sorted(record_set.keys()))
    records = [read_record(RebuildRecord, meta) for meta in metas]
    return max(records, key=lambda record: record.number, default=None)


def write_record(store: Store, job: str, record: RebuildRecord) -> None:
    """Publish a record, and drop the earlier ones."""
    record_set = RecordSet(store, KIND, job)
    before = record_set.keys()
    record_set.publish([Record(key=f"{record.number}", meta=values_of(record))])
    record_set.drop(before - {f"{record.number}"})


def record_of(job: Job, last: RebuildRecord | None) -> RebuildRecord:
    """Return the record of the current job."""
    namespaces = job.ledger.variant
    features = encoder_of(job.pipeline).writes
    files = tuple(
        (f.file.place, f.medium.digest, f.medium.prompt if features in namespaces.prompted else "")
        for f in job.files
    )
    before = last if last is not None and last.features == namespaces[features] else None
    return RebuildRecord(
        number=last.number + 1 if last else 1,
        features=namespaces[features],
        settings=settings_of(job),
        files=files,
        seconds_per_chunk=before.seconds_per_chunk if before else None,
    )


def difference(last: RebuildRecord | None, now: RebuildRecord) -> Difference:
    """Return the difference from the last rebuild; without one, all files are added."""
    before, after = _by_path(last), _by_path(now)
    shared = before.keys() & after.keys()
    changed = sum(before[path].keys() != after[path].keys() for path in shared)
    return Difference(
        unchanged=len(shared) - changed,
        added=len(after.keys() - before.keys()),
        changed=changed,
        removed=len(before.keys() - after.keys()),
        why=tuple(reasons(last, now)) if last is not None else (),
    )


def _by_path(record: RebuildRecord | None) -> dict[str, dict[str, set[str]]]:
    """Return path → digest → prompts."""
    by_path: dict[str, dict[str, set[str]]] = {}
    for path, digest, prompt in record.files if record is not None else ():
        by_path.setdefault(path, {}).setdefault(digest, set()).add(prompt)
    return by_path


def reasons(last: RebuildRecord, record: RebuildRecord) -> list[str]:
    """Return why features of unchanged files cannot be reused."""
    if last.features == record.features:
        then = _by_path(last)
        prompts_changed = any(
            then.get(path, {}).get(digest, prompts) != prompts
            for path, digests in _by_path(record).items()
            for digest, prompts in digests.items()
        )
        text = "prompt changed, and this model's features depend on it"
        return [text] if prompts_changed else []
    if computed_namespace(last.features) == computed_namespace(record.features):
        old, form = (form_of(namespace) for namespace in (last.features, record.features))
        why = f"--features-as changed ({old or 'as computed'} → {form or 'as computed'})"
        return [why + "; penstock cache pack makes the form without encoding" * bool(form)]
    before, now, changes = last.settings, record.settings, []
    if before["model"] != now["model"]:
        changes.append(f"model changed ({before['model']} → {now['model']})")
    elif before["commit"] != now["commit"]:
        short = [f"{commit}"[:7] for commit in (before["commit"], now["commit"])]
        changes.append(f"revision changed ({short[0]} → {short[1]})")
    elif before["weights"] != now["weights"]:
        changes.append("weights changed: the model's folder holds another checkpoint")
    if before["computing"] != now["computing"]:
        computing = [" ".join(values["computing"]) for values in (before, now)]
        changes.append(f"precision or attention changed ({computing[0]} → {computing[1]})")
    for name, value in now["sampling"].items():
        old = before["sampling"].get(name)
        if old != value:
            changes.append(f"sampling changed ({name.replace('_', ' ')} {old} → {value})")
    if before["output_versions"] != now["output_versions"]:
        changes.append("output version changed: this version of Penstock encodes differently")
    return changes or ["the processor's settings changed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RebuildOptions:
    """The options of a rebuild besides its sources and model settings."""

    name: str = ""
    """Distinguishes jobs over the same sources, such as those of two models."""
    dry_run: bool = False
    """Print what would be done, and do nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Missing:
    """The contents to encode."""

    files: int = 0
    """Number of contents with missing features; identical files count once."""
    chunks: int = 0
    frames: int = 0
    frame_bytes: int = 0
    """Bytes of frames, which are deleted after encoding."""
    feature_bytes: int = 0
    guessed: bool = False
    """Whether some are estimates from file headers."""
    sounds: int = 0
    """Number of chunks whose sound has no features; those of unread files are unknown."""

    def __bool__(self) -> bool:
        return bool(self.chunks or self.sounds)

    @classmethod
    def from_job(cls, job: Job) -> "Missing":
        unencoded = _unencoded(job)
        return cls(
            files=len(unencoded),
            chunks=sum(estimate.chunks for estimate, _ in unencoded),
            frames=sum(estimate.frames for estimate, _ in unencoded),
            frame_bytes=sum(estimate.frame_bytes for estimate, _ in unencoded),
            feature_bytes=sum(estimate.feature_bytes for estimate, _ in unencoded),
            guessed=any(guessed for _, guessed in unencoded),
            sounds=sum(
                not job.ledger.has(task, hear.STAGE) and not job.ledger.has_failed(task)
                for task in job.ledger.tasks(job.media)
            ),
        )


def _unencoded(job: Job) -> list[tuple[Estimate, bool]]:
    """Return an estimate of each content without features, and whether it is a guess from the file
    header. It is one until the frames stage has read the file."""
    ledger, made, estimated = job.ledger, encoder_of(job.pipeline).writes, []
    seen: set[str] = set()
    for medium, estimate in zip(job.media, estimates(job), strict=True):
        if ledger.failure(medium) is not None:
            continue
        if ledger.media_index(medium) is None:
            if not estimate.reuses_features:
                estimated.append((estimate, True))
            continue
        chunks = [
            task
            for task in ledger.tasks([medium])
            if task[made] not in ledger[made]
            and not ledger.has_failed(task)
            and task[made] not in seen
        ]
        seen.update(task[made] for task in ledger.tasks([medium]))
        if chunks:
            estimated.append((_of_chunks(job, medium, chunks), False))
    return estimated


def _of_chunks(job: Job, medium: Medium, tasks: Sequence[Task]) -> Estimate:
    shown, cut = [task.chunk for task in tasks], [task.whole for task in tasks]

    def feature_bytes(chunk: ChunkIndex) -> int:
        size = (chunk.height, chunk.width)
        parts = tile_count(job, medium, size)
        return job.model.feature_bytes(medium.kind, len(chunk.times), size, parts)

    return Estimate(
        seconds=sum(chunk.end - chunk.start for chunk in shown),
        chunks=len(shown),
        frames=sum(len(chunk.times) for chunk in shown),
        frame_bytes=sum(3 * len(c.times) * c.height * c.width for c in cut),
        feature_bytes=sum(map(feature_bytes, shown)),
    )


@dataclass(kw_only=True, slots=True)
class RebuildResult:
    """The result of a rebuild, or of its dry run."""

    files: int
    """Number of requested files."""
    difference: Difference
    """What changed since the last rebuild."""
    missing: Missing
    """What has no features yet."""
    seconds_per_chunk: float | None
    """Encoding time per chunk in the last rebuild; None: unknown for this model and sampling."""
    fetch_bytes: int
    """Bytes of weights to download."""
    dry_run: bool
    """Whether nothing was encoded, because only the plan was requested."""
    encoded: int = 0
    """Number of encoded chunks."""
    encoded_sounds: int = 0
    """Number of chunks whose sound was encoded."""
    failures: list[Failure] = field(default_factory=list)
    """What could not be encoded, one for each file."""

    @property
    def exit_code(self) -> int:
        """Return 0 if all features exist, 1 if some files failed."""
        return 1 if self.failures else 0

    @property
    def made(self) -> int:
        """Return the number of files with features."""
        return self.files - sum(failure.stage != "sources" for failure in self.failures)

    def row(self) -> dict[str, int]:
        return {**self.difference.counts, "chunks encoded": self.encoded}

    def to_json(self) -> dict[str, Json]:
        return {**asdict(self), "exit_code": self.exit_code}

    def plan_lines(self) -> list[str]:
        """Return the reasons for differences, and the planned work."""
        missing, lines = self.missing, list(self.difference.why)
        if self.fetch_bytes:
            lines.append(f"to download: {size(self.fetch_bytes)} of weights")
        if missing.sounds:
            lines.append(f"sound to encode: that of {counted(missing.sounds, 'chunk')}")
        if not missing.chunks:
            return lines
        about = "about " if missing.guessed else ""
        took = "unknown until some are encoded"
        if self.seconds_per_chunk is not None:
            took = f"about {duration(self.seconds_per_chunk * missing.chunks)}"
        chunks, files = counted(missing.chunks, "chunk"), counted(missing.files, "file")
        frames = f"{about}{counted(missing.frames, 'frame')}, {size(missing.frame_bytes)}"
        return [
            *lines,
            f"to encode: {about}{chunks} of {files}, {frames} until encoded",
            f"to store: about {size(missing.feature_bytes)} of features; time: {took}",
        ]

    def line(self) -> str:
        would = "would encode" if self.dry_run else "encoded"
        chunks, sounds = self.encoded, self.encoded_sounds
        if self.dry_run:
            chunks, sounds = self.missing.chunks, self.missing.sounds
        since = f"{self.difference.line()} since the last rebuild"
        text = f"{counted(self.files, 'file')}: {since}; {would} {counted(chunks, 'chunk')}"
        if sounds:
            text += f" and the sound of {counted(sounds, 'chunk')}"
        return f"{text}, {len(self.failures)} failed" if self.failures else text

    __repr__ = line


def rebuild(
    config: MediaOptions,
    options: RebuildOptions,
    display: Display,
    make_launcher: LauncherMaker = DirectLauncher,
    on_begin: OnBegin | None = None,
) -> RebuildResult:
    """Update the stored features or vectors of all configured sources.

    Text and output options have no effect. `on_begin`: callback with the job and the run record
    before work begins. Raises PenstockError; finished work is kept.
    """
    # The job's name in its store does not depend on its model, sampling or files.
    places = {os.path.abspath(os.path.expanduser(source)) for source in config.sources}
    name = digest_of(["rebuild", sorted(places), options.name])
    # A rebuild has no output folder: its logs and run record are in the store.
    out = open_store(config.store_url).local / "logs" / f"rebuild-{name[:12]}"
    run = RebuildRun(
        **{option.name: getattr(config, option.name) for option in fields(config)}, out=str(out)
    )

    def attempt() -> RebuildResult:
        return _run_rebuild(
            run, name, options, display, RunObserver(display, on_begin), make_launcher
        )

    return replanned_once(attempt, display.print_line)


def _run_rebuild(
    config: RunOptions,
    name: str,
    options: RebuildOptions,
    display: Display,
    observer: RunObserver,
    make_launcher: LauncherMaker,
) -> RebuildResult:
    with stopped_in_order(), ForkServer() as forks:
        launcher = ForkingLauncher(make_launcher(observer.on_event), forks, observer.on_event)
        job = prepare(
            config, launcher, display.print_line, *KEPT, progress=display.fetched, alone=True
        )
        last = last_record(job.store, name)
        now = record_of(job, last)
        missing = Missing.from_job(job)
        result = RebuildResult(
            files=len(job.files),
            difference=difference(last, now),
            missing=missing,
            fetch_bytes=bytes_to_fetch(job.model, parts_of(job.pipeline) if missing else []),
            seconds_per_chunk=now.seconds_per_chunk,
            dry_run=options.dry_run,
        )
        if options.dry_run:
            result.failures = failures_of(job)
            return result
        for line in result.plan_lines():
            display.print_line(line)
        lock_message = ("rebuilding, with its logs in", "give it another --name")
        with observer.pipeline_for_job(job, launcher, *lock_message) as runner:
            runner.compute_records()
            tasks = job.ledger.tasks(job.media)
            for made in (stage.writes for stage in job.pipeline if stage.part):
                job.ledger[made].touch(keys_of(tasks, made))
            result.encoded = runner.writer.stage(encoder_of(job.pipeline).name).items
            if hear.STAGE in job.pipeline:
                result.encoded_sounds = runner.writer.stage(hear.STAGE.name).items
            if result.encoded:
                seconds = sum(runner.writer.stage(stage.name).seconds for stage in job.pipeline)
                now = replace(now, seconds_per_chunk=seconds / result.encoded)
            is_same = last is not None and replace(last, number=now.number) == now
            if result.missing or not is_same:
                write_record(job.store, name, now)
        result.failures = failures_of(job)
    return result
