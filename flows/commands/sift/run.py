"""Runs a sift job: marks media, groups copies, and lists what is kept."""

import contextlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from artifacts.digests import digest_of
from artifacts.errors import CannotFit, Killed, StageDied
from artifacts.index import near_duplicates
from artifacts.packages import require_extra
from artifacts.records.packs import DamagedRecord, Record, RecordSet, RecordUnion, record_sets_of
from artifacts.records.store import Store, open_store, prepare_store
from artifacts.texts.captions import Failure, write_jsonl
from artifacts.wording import counted
from flows.commands.sift.duplicates import COPIES_VERSION, Fingerprint, Pairs, pairs_of
from flows.commands.sift.marks import (
    CHOICES_FILE,
    MarkedFiles,
    add_file,
    choices_in,
    kept_of,
    mark_copies,
    parse_keep,
    write_tables,
)
from flows.commands.sift.result import Sifted
from flows.commands.sift.vector_marks import vector_marks
from flows.core.checkpoint.models import digests_in
from flows.core.console.display import Display, StageStart
from flows.core.job.away import AwayMedia, mounts_now, unread_sources
from flows.core.job.job_file import JobFile
from flows.core.job.media_digests import read_contents
from flows.core.job.prepare import NothingToDo, out_folder
from flows.core.job.young_files import files_by_age
from flows.core.ledger.tasks import Medium
from flows.core.machine.launch import (
    DirectLauncher,
    Launcher,
    StageCall,
    wait_or_stop,
    with_restarts,
)
from flows.core.machine.leases import leased
from flows.core.media.generated_files import GeneratedFiles
from flows.core.media.media_file import Selection
from flows.core.media.sources import find_media, left_out_note
from flows.core.options.commands import RunOptions
from flows.core.options.formats import MEDIA
from flows.core.options.vectors import SiftConfig, SiftOptions
from flows.core.pipelines import SIFT
from flows.execution.run import LauncherMaker, refuse_file, stopped_in_order
from flows.execution.run_observer import OnBegin
from flows.execution.stage_loop import crash_suspects
from flows.outputs.existing import replaced_line
from flows.outputs.folder.foreign_files import output_names
from flows.outputs.folder.owners import refuse_taking, take
from flows.outputs.folder.run_lock import only_run_in
from flows.outputs.marker import write_proved
from flows.outputs.record.record_writer import RecordWriter
from flows.outputs.record.run_read import history_in
from flows.outputs.write import media_line, missing_error
from stages import sift as stage
from stages.frames.job import CRASHED, UNSTORED_KINDS, FramesItem
from stages.process.events import Answered, Event, Failed, MemorySample
from stages.process.host_memory import cores
from stages.sift import SiftJob
from stages.sift.measures import FRACTIONS, STEP_SECONDS, Marked

NAMESPACE = digest_of(["marks", stage.OUTPUT_VERSION, STEP_SECONDS, FRACTIONS])
"""Cache namespace of the marks: they depend on the content alone."""
RECORDS = 512
"""Records that are read at once."""


@dataclass(kw_only=True, slots=True)
class Sifting:
    """The media of one run."""

    options: SiftOptions
    retry_failed: bool
    store: Store
    files: list[JobFile]
    failures: list[Failure]
    """Sources that cannot be read."""
    passed: dict[str, dict[str, str]] = field(default_factory=dict)
    """Digest → failure that the next run tries again."""
    choices: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """Path and digest → what a person decided of a file."""
    marks: RecordUnion = field(init=False)
    stored_failures: RecordSet = field(init=False)

    def __post_init__(self) -> None:
        sets = record_sets_of(self.store, ("marks", NAMESPACE), ("failures", NAMESPACE))
        self.marks, self.stored_failures = RecordUnion(sets[:1]), sets[1]

    @property
    def requested(self) -> int:
        """Return the number of files and of sources that cannot be read."""
        return len(self.files) + unread_sources(self.failures, self.files)

    @property
    def media(self) -> dict[str, Medium]:
        """Return each content once, by its digest."""
        return {job_file.medium.digest: job_file.medium for job_file in self.files}


def sift(
    config: SiftConfig,
    display: Display,
    make_launcher: LauncherMaker = DirectLauncher,
    on_begin: OnBegin | None = None,
) -> Sifted:
    """Mark all media of the configuration, and list those to keep. Raises PenstockError; finished
    records stay."""
    require_extra("search", "sift")
    condition = parse_keep(config.keep, similar=config.similar is not None)
    refuse_file(out := out_folder(config))
    refuse_taking(config, "sift")
    vectors = None
    if config.model:
        if config.similar is not None:
            near_duplicates.require_similar()
        vectors = vector_marks(config, display, make_launcher, on_begin)
    with stopped_in_order(), contextlib.closing(display):
        job = _prepared(config, config, display, out)
        job.choices = choices_in(out)
        with (
            only_run_in(out, "marking into", "give another --out"),
            leased(job.store, [NAMESPACE], out),
        ):
            writer = _begun_record(config.format, config.keep, job, out)
            own = GeneratedFiles(job.store, out=out)
            for note in take(config, "sift", writer, job.store.url, own):
                display.print_line(note)
            if line := replaced_line(out, writer.record.outputs):
                display.print_line(line)
            writer.write(force=True)
            with writer.recording_end():
                run = SiftRun(
                    job=job, writer=writer, display=display, make_launcher=make_launcher, out=out
                )
                files, failures = run.complete()
                if vectors is not None:
                    vectors.mark(files, config.similar)
                if job.choices:
                    display.print_line(_choices_line(job, files, out))
                kept, left_out = kept_of(files, condition)
                write_tables(own, out, files, config.format, kept, left_out.why)
                lines = (media_line(job_file.file, 1, job_file.medium) for job_file in files.files)
                write_proved(out, {MEDIA: lines}, job.store.url)
                write_jsonl(out / "failures.jsonl", failures)
                writer.record.rows = len(files.rows)
                writer.fails(failures)
    return Sifted(
        out=out,
        files=job.requested,
        failures=failures,
        marked=len(files.rows),
        kept=len(kept),
        duplicates=sum(row["duplicate"] for row in files.rows),
        left_out=left_out.firsts,
        nulls=left_out.nulls,
        unmarked=frozenset(f.file.place for f in job.files) - {f.file.place for f in files.files},
    )


def _begun_record(
    formats: Sequence[str], keep: str | None, job: Sifting, out: Path
) -> RecordWriter:
    """Return the record of the run, which is not written yet."""
    writer = RecordWriter(out, SIFT)
    names = output_names(formats)
    writer.record.outputs = {name: str(out / name) for name in names}
    writer.record.keep = keep or ""
    keys = [f"{NAMESPACE[:16]}-{digest[:16]}" for digest in job.media]
    writer.carry_on(history_in(out), keys)
    writer.record.media.total = job.requested
    writer.record.mounts = mounts_now(out, job.files)
    return writer


def _choices_line(job: Sifting, files: MarkedFiles, out: Path) -> str:
    """Return the line about what a person chose: how much of it names files that are there."""
    applied, stale = len(files.choices), len(job.choices) - len(files.choices)
    line = f"{counted(applied, 'choice')} of a person applied: {out / CHOICES_FILE}"
    return f"{line}; {stale:,} of files that are gone, moved or changed" if stale > 0 else line


def pending(config: SiftConfig, display: Display) -> dict[str, int]:
    """Return how many files and contents a run has, and how many of these it would mark. Raises
    PenstockError."""
    parse_keep(config.keep, similar=config.similar is not None)
    refuse_taking(config, "sift")
    job = _prepared(config, config, display, out_folder(config))
    return {
        "files": len(job.files),
        "contents": len(job.media),
        "to_mark": len(_missing(job, job.media.values())),
    }


def _prepared(config: RunOptions, options: SiftOptions, display: Display, out: Path) -> Sifting:
    """Find the media, and compute their digests. Raises UsageError, EnvironmentFault."""
    display.doing("reading the sources")
    config.check_sources()
    store = open_store(config.store_url)
    prepare_store(store)
    selection = Selection(recursive=config.recursive, extensions=config.extensions)
    if note := left_out_note(config.sources, selection):
        display.print_line(note)
    files, failures = find_media(config.sources, selection, config.limit)
    by_age = files_by_age(files, config.min_age, config.out)
    files = by_age.resting
    away = AwayMedia(config, files, failures)
    readable, unreadable = read_contents(
        files, digests_in(store), store, display.fetched, again=config.check_media
    )
    media_away = away.media(files, readable)
    failures = away.failures(media_away, [*failures, *unreadable])
    if not readable and not media_away:
        if nothing_yet := by_age.nothing_yet(failures):
            raise nothing_yet
        write_jsonl(out / "failures.jsonl", failures)
        raise NothingToDo(SIFT, failures, config.sources)
    # A file whose line has several prompts is one file.
    unique: dict[tuple[object, ...], JobFile] = {}
    for job_file in readable:
        unique.setdefault(job_file.file.identity, job_file)
    by_place = {medium.place: [medium.job_file] for medium in media_away}
    job = Sifting(
        options=options,
        retry_failed=config.retry_failed,
        store=store,
        files=[*away.in_order(unique.values(), by_place)],
        failures=failures,
    )
    for job_file in job.files:
        if job_file.away and job_file.medium.digest not in job.marks:
            away.refuse(job_file.file)
    for note in filter(None, [by_age.note, *away.gone_note(job.files, "marks")]):
        display.print_line(note)
    return job


@dataclass(frozen=True, kw_only=True, slots=True)
class SiftRun:
    """Marks the media of a run in child processes."""

    job: Sifting
    writer: RecordWriter
    display: Display
    make_launcher: LauncherMaker
    out: Path

    def complete(self) -> tuple[MarkedFiles, list[Failure]]:
        """Return the marks of all files, and what could not be marked; try once more what is
        neither. Raises PenstockError."""
        for _ in range(2):
            files, failures = self._marked(), _failures(self.job)
            marked_or_failed = Counter((f.file.media_path, f.file.source) for f in files.files)
            marked_or_failed.update(
                (failure.media_path, failure.source)
                for failure in failures[len(self.job.failures) :]
            )
            expected = Counter((f.file.media_path, f.file.source) for f in self.job.files)
            if not (missing := expected - marked_or_failed):
                return files, failures
        raise missing_error(self.out, {name: count for (name, _), count in missing.items()})

    def _marked(self) -> MarkedFiles:
        """Mark the media that have no marks yet, and return the marks of all. Raises
        PenstockError."""
        job, media = self.job, self.job.media
        if job.retry_failed:
            job.stored_failures.drop([d for d in media if d in job.stored_failures])
        paths = {f.medium.digest: f.file.media_path for f in job.files}
        launcher = self.make_launcher(partial(self._on_event, paths))

        def attempt() -> MarkedFiles:
            before = 0
            while True:
                missing = _missing(job, media.values())
                done = sum(digest in job.marks for digest in media)
                name, total = stage.STAGE.name, done + len(missing)  # without those that failed
                self.writer.expect(name, total, done)
                if len(missing) in (0, before):  # the rest cannot be marked in this run
                    self.display.close()
                    return _collected(job, self.display)
                self.writer.begin(name)
                worked = partial(getattr, self.writer.stage(name), "seconds")
                self.display.stage(StageStart(name=name, total=total, done=done, worked=worked))
                self._run(missing, launcher)
                before = len(missing)

        return with_restarts(attempt, after=(DamagedRecord, Killed))

    def _on_event(self, paths: Mapping[str, str], name: str, event: Event) -> None:
        self.display.on_event(name, event)
        if isinstance(event, Answered):
            self.writer.count_items(name, len(event.keys))
        elif isinstance(event, MemorySample):
            self.writer.memory(name, asdict(event))
        elif isinstance(event, Failed):
            texts = {"message": event.message, "hint": event.hint}
            failure = {"media_path": paths.get(event.media, ""), "stage": name, **texts}
            self.display.fail(**failure)
            self.writer.fail(name, failure)

    def _run(self, media: Sequence[Medium], launcher: Launcher) -> None:
        """Mark these media in one process. If it crashes, mark each that it had open alone. Raises
        PenstockError."""
        job, images = self.job, sum(medium.kind == "image" for medium in media)
        workers = min(cores(), max(1, images // 64, min(len(media), 2)))
        items = [FramesItem(m.path, m.digest, m.kind, None, m.stamp) for m in media]
        call = StageCall(
            name=stage.STAGE.name,
            job=SiftJob(store=job.store.url, namespace=NAMESPACE, media=items, workers=workers),
            device="cpu",
            log=self.out / "logs" / "sift.log",
        )
        process = launcher.start(call)
        try:
            wait_or_stop(process)
        except (StageDied, CannotFit) as error:
            suspects = crash_suspects(error, process.outcome, media)
            if not suspects:
                raise
            if len(media) == 1:
                job.stored_failures.publish([Record(key=media[0].digest, meta=CRASHED)])
                return
            for medium in suspects:
                self._run([medium], launcher)
        finally:
            for failure in process.outcome.failures:
                if failure.kind in UNSTORED_KINDS:
                    job.passed[failure.media] = failure.reason
            self.writer.add(process.outcome, attention="", precision={})


def _missing(job: Sifting, media: Iterable[Medium]) -> list[Medium]:
    """Return the media that have neither marks nor a failure."""
    job.marks.refresh()
    job.stored_failures.refresh()
    marked_or_failed = (job.marks, job.stored_failures, job.passed)
    return [m for m in media if not any(m.digest in digests for digests in marked_or_failed)]


def _collected(job: Sifting, display: Display) -> MarkedFiles:
    files = MarkedFiles()
    items: dict[str, Fingerprint] = {}
    marked_files = (job_file for job_file in job.files if job_file.medium.digest in job.marks)
    while group := list(islice(marked_files, RECORDS)):
        records = job.marks.read_several([job_file.medium.digest for job_file in group])
        for job_file, record in zip(group, records, strict=True):
            marked = Marked.of(record)
            add_file(files, job_file, marked, job.options.chunk)
            seconds = marked.meta["seconds"]
            items[job_file.medium.digest] = Fingerprint(looks=marked.looks, seconds=seconds)
    chosen = (job.choices.get((row["path"], row["digest"])) for row in files.rows)
    files.choices = {at: choice for at, choice in enumerate(chosen) if choice}
    contents, pairs = files.contents, _pairs(job, items, display)
    same = near_duplicates.Pairs(contents=contents, pairs=np.zeros((0, 2), np.int64))
    mark_copies(files, "exact", same)
    mark_copies(files, "duplicate", near_duplicates.Pairs(contents=contents, pairs=pairs))
    return files


def _pairs(job: Sifting, items: Mapping[str, Fingerprint], display: Display) -> Pairs:
    """Return the pairs of contents that are copies. They are stored, so that with another `--keep`
    nothing is compared again: 3,000 pictures take up to a minute."""
    mirrored = job.options.mirrored
    key = digest_of(["copies", COPIES_VERSION, mirrored, *items])
    if key in job.marks:
        return np.frombuffer(job.marks.read(key).payload, np.int64).reshape(-1, 2)
    display.doing(f"comparing {counted(len(items), 'file')} to find copies")
    pairs = pairs_of(list(items.values()), mirrored=mirrored)
    job.marks.publish([Record(key=key, meta={}, payload=pairs.tobytes())])
    return pairs


def _failures(job: Sifting) -> list[Failure]:
    """Return everything that could not be marked, in source order."""
    failures = list(job.failures)
    for job_file in job.files:
        digest = job_file.medium.digest
        failure = job.passed.get(digest)
        if digest not in job.marks and digest in job.stored_failures:
            failure = failure or job.stored_failures.meta(digest)
        if failure is not None:
            names = {"media_path": job_file.file.media_path, "source": job_file.file.source}
            texts = {"message": failure["message"], "hint": failure["hint"]}
            failures.append(
                Failure(**names, **texts, stage=stage.STAGE.name, error=failure["kind"])
            )
    return failures
