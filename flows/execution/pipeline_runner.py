"""Runs the stages of a pipeline one after another, wave by wave, with or without Prefect."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import TypeVar

from artifacts.digests import digest_of
from artifacts.disk.faults import removed_fault
from artifacts.errors import HalfChecked, Killed, ModelChanged, PenstockError
from artifacts.records.packs import DamagedRecord, RecordSet
from artifacts.texts.captions import write_jsonl
from artifacts.texts.edits import EDITS
from artifacts.texts.labels import Groups, TextVectors, text_vectors_in
from artifacts.texts.shards import DATASET
from artifacts.wording import counted, first_of
from flows.core.job.prepare import Job
from flows.core.ledger.ledger import stages_with_work
from flows.core.ledger.namespaces import Variant, one_shot_namespace
from flows.core.ledger.tasks import Medium, keys_of
from flows.core.machine.launch import with_restarts
from flows.core.media.media_file import MediaFile
from flows.core.pipelines import parts_of
from flows.core.plan.choose import plan_request
from flows.core.plan.context_check import context_notes, longest_answer, loses_frames
from flows.core.plan.sizes import estimates
from flows.core.plan.store_limit import planned_waves, store_limit
from flows.core.plan.times import note_seconds
from flows.execution.stage_calls import StageCallBuilder
from flows.execution.stage_runner import StageRunner
from flows.execution.summaries import make_summaries
from flows.outputs.captions import has_words
from flows.outputs.chunk_notes import short_spans_note, unheard_note
from flows.outputs.data_sets import is_stale, write_dataset, write_trainers
from flows.outputs.existing import output_paths
from flows.outputs.record.record_writer import RecordWriter
from flows.outputs.run_result import RunEnd, RunResult
from flows.outputs.run_status import edited_text
from flows.outputs.write import (
    failures_of,
    missing_error,
    missing_rows,
    warned_files,
    write_outputs,
)
from stages import answer, embed_texts
from stages.answer import AnswerItem
from stages.models.hub.transfer import Announce

End = TypeVar("End", bound=RunEnd)
Write = Callable[[bool], Mapping[MediaFile, int] | None]
"""Writes the outputs, and returns how many chunks of each file they hold; None: the run has none.
The argument is True when all are made."""
WRITING_SHARE = 20
"""Outputs are written whole between waves, which may take one part in this many of a run's time."""


class PipelineRunner:
    """Runs the stages of one job."""

    def __init__(
        self,
        job: Job,
        stage_runner: StageRunner,
        writer: RecordWriter,
        announce: Announce = lambda _: None,
    ) -> None:
        self._job = job
        self._announce = announce
        self.stages = stage_runner
        self.writer = writer
        self._write_at = 0.0
        """Monotonic time at which the outputs may be written again between waves."""

    def text_vectors(
        self, groups: Groups, while_running: Callable[[], object] = lambda: None
    ) -> TextVectors:
        """Return the vectors of these groups of texts, computed unless they are stored.
        `while_running` is called while a process computes them. Raises PenstockError."""
        key = digest_of([list(group) for group in groups])
        call = partial(StageCallBuilder(self._job).texts_call, groups, key)
        while (vectors := self._stored_vectors(groups, key)) is None:
            self.stages.run_once(
                embed_texts.STAGE, call, by_media=False, while_running=while_running
            )
        return vectors

    def _stored_vectors(self, groups: Groups, key: str) -> TextVectors | None:
        """Return the vectors stored under this key, in the best precision, or None."""
        for settings in self._job.model.settings["language"]:
            namespace = one_shot_namespace(embed_texts.STAGE, self._job.model, settings)
            records = RecordSet(self._job.store, embed_texts.STAGE.writes, namespace)
            if key in records:
                self.writer.expect(embed_texts.STAGE.name, 1, 1)
                return text_vectors_in(records.read(key), groups, settings.label)
        return None

    def answer(self, items: Sequence[AnswerItem], features_of: Variant) -> None:
        """Make the answers of these items, which are about features of one variant. Raises
        PenstockError."""
        call = partial(StageCallBuilder(self._job).answers_call, items, features_of)
        self.stages.run_once(answer.STAGE, call, total=len(items), by_media=False)
        self._job.ledger.refresh()

    def run(self) -> RunResult:
        """Caption every item. When an error stops the run, write the finished captions and raise
        it."""
        job = self._job
        self._refresh()
        job.edits.take_in()
        result = RunResult(
            out=job.out, files=job.requested, limit=job.config.groups.engine.max_new_tokens
        )
        write = partial(self._write, result)
        with self._recorded(write):
            self._run_all(write)
            result.warnings += (rests := short_spans_note(job))
            self.writer.record.plan.notes += rests
            if job.config.groups.prompts.summary:
                self._summarize(result)
            self._note_seconds()
            if result.written.captions:  # or an earlier run's data sets would be emptied
                self._write_data_sets(result)
        if left_out := job.edits.unproved():
            result.warnings.append(
                f"{counted(left_out, 'edit')} in {job.out / EDITS} not applied: no command of this "
                "user on this machine wrote them. --trust-folder applies them"
            )
        result.warnings += unheard_note(job)
        longest = longest_answer(plan_request(job)) if result.written.cut else None
        result.warnings += result.notes(longest)
        return result

    def _summarize(self, result: RunResult) -> None:
        """Make the summaries. Videos that cannot be summarized are added to the failures."""
        rows, failures, kept_tracks = make_summaries(self._job, self.stages)
        result.summaries = len(rows)
        if kept_tracks:
            result.warnings.append(
                f"kept {counted(len(kept_tracks), 'track')} of chapters that users wrote or edited "
                f"({first_of(kept_tracks)}); --overwrite replaces them"
            )
        texts = ((row.summary, *(chapter["text"] for chapter in row.chapters)) for row in rows)
        result.empty_summaries = sum(not all(map(has_words, parts)) for parts in texts)
        if failures:
            result.failures = [*result.failures, *failures]
            write_jsonl(self._job.out / "failures.jsonl", result.failures)
            self.writer.fails(result.failures)

    def _write_data_sets(self, result: RunResult) -> None:
        """Write the outputs that are made from all captions together, and the clips."""
        launcher, on_start = self.stages.loop.launcher, self.stages.loop.on_start
        stale = DATASET in result.written.earlier
        trainers = write_trainers(self._job, launcher, on_start)
        result.warnings += trainers.notes
        if DATASET in self._job.config.groups.outputs.format:  # of the same clips
            user_texts = result.written.user_texts
            notes = write_dataset(self._job, launcher, on_start, user_texts)
            result.warnings += [note for note in notes if note not in result.warnings]
            stale = False
            result.written.others.append(f"{DATASET}/")
        for form in trainers.forms:
            count = trainers.captions[form]
            of_all = "" if count == result.written.captions else f" ({counted(count, 'caption')})"
            edits_note = (
                f" with {edited_text(names)}" if (names := trainers.edited.get(form)) else ""
            )
            result.written.others.append(f"{form}/{of_all}{edits_note}")
        result.written.user_texts |= trainers.user_texts
        updated = {*trainers.forms, *trainers.edited}
        result.written.earlier = [n for n in result.written.earlier if n not in updated]
        result.written.edited = trainers.edited
        self._record_outputs(result, stale=stale)

    def compute_records(self) -> None:
        """Make the last record of every item, without outputs. Raises the error that stopped the
        run."""
        self._compute(lambda last: self._record_progress())

    def compute_outputs(self, write_out: Callable[[], End], rows_of: Callable[[End], int]) -> End:
        """Make the last record of every item, and return what `write_out` returns, which is called
        when all are made. `rows_of` returns its number of rows, for the run record. Raises the
        error that stopped the run."""
        ends: list[End] = []

        def write(last: bool) -> Mapping[MediaFile, int] | None:
            if last:
                ends.append(end := write_out())
                self.writer.record.rows = rows_of(end)
                self.writer.fails(end.failures)
            self._record_progress()
            return ends[-1].chunks if last else None

        self._compute(write)
        return ends[-1]

    def _compute(self, write: Write) -> None:
        self._refresh()
        with self._recorded(write):
            self._run_all(write)
        self._note_seconds()

    def _note_seconds(self) -> None:
        """Note for later plans how long the stages took."""
        for stage in self._job.pipeline:
            recorded = self.writer.stage(stage.name)
            note_seconds(self._job, stage, recorded.items, recorded.seconds)

    @contextlib.contextmanager
    def keep_running(self) -> Iterator[None]:
        """Keep the run record open after the media are done, and record how the block ends."""
        self.writer.record.state = "running"
        self.writer.write(force=True)
        with self._recorded(bool):
            yield

    @contextlib.contextmanager
    def _recorded(self, write: Callable[[bool], object]) -> Iterator[None]:
        """Write the finished outputs however the run ends, and record how it ended."""
        with self.writer.recording_end():
            try:
                yield
            except BaseException as error:
                self.stages.stop()
                # An error while writing, such as a full disk, would hide the error that is raised
                # below.
                with contextlib.suppress(Exception):
                    self._job.ledger.refresh()
                    # Outputs are of one model, in one precision.
                    is_other = isinstance(error, (ModelChanged, HalfChecked))
                    if not (is_other or self.writer.is_gone):
                        write(True)
                raise

    def _run_all(self, write: Write) -> None:
        """Make all items and write the outputs. Items of the sources that have then neither a row
        nor a failure are made once more. Raises EnvironmentFault if that does not help."""
        for _ in range(2):
            self._run_waves(write)
            self._check_out()
            if not (missing := missing_rows(self._job, write(True))):
                return
            number = counted(sum(missing.values()), "item")
            self._announce(f"neither a row nor a failure for {number} of {next(iter(missing))} …")
            self._job.ledger.refresh()
        raise missing_error(self._job.out, missing)

    def _check_out(self) -> None:
        """Raise EnvironmentFault if the folder of the run was removed or moved."""
        if self.writer.is_gone:
            raise removed_fault(self._job.out)

    def _run_waves(self, write: Write) -> None:
        """Make the items that are missing. Outputs are written between waves."""
        job, plan = self._job, self.writer.record.plan
        stages = stages_with_work(job.ledger, job.media)
        bound = job.ledger.variant.bound or loses_frames(job.model, job.config)
        limit = None
        if stages or bound:
            expected = estimates(job)
            limit = store_limit(job, expected, self.stages.lease) if stages else None
            if limit is not None and limit.is_short:
                stages = list(job.pipeline[1:])
            for note in [*context_notes(job, expected), *(limit.notes() if limit else [])]:
                self._announce(note)
                plan.notes.append(note)
        if not stages:  # finished work is not estimated again
            self.stages.delete_consumed(job.media)
            plan.chunks = len(job.ledger.tasks(job.media)) // plan.prompts
            return
        for stage in (spec for spec in job.pipeline[1:] if spec not in stages):
            self._announce(f"{stage.verb}: nothing to do, all of it is stored")
        if limit is not None:
            if refusal := limit.refusal():
                raise refusal
            job.ledger.unfit |= limit.failures()
        waves, line = planned_waves(job, expected, limit, records=True)
        if line:
            self._announce(line)
            plan.in_waves = line
        self.stages.plan(stages, expected, self._announce)
        # All parts that this run needs, so that an unreachable hub is found now and not after hours
        # of work.
        self.stages.loop.fetch(parts_of(stages))
        plan.chunks = sum(e.chunks for e in expected) // plan.prompts
        self.writer.fails(failures_of(job))  # of earlier runs
        self._throttle(self._record_progress)
        for number, wave in enumerate(waves):
            self._check_out()
            following = waves[number + 1] if number + 1 < len(waves) else []
            both_fit = limit is None or limit.make_room(waves[number:])
            if limit is not None:
                self._record_progress()  # records that later waves make again are not done
            ahead = following if both_fit else []
            self._run_wave(wave, ahead, follows=bool(following), in_full=limit is not None)
            if following and time.monotonic() >= self._write_at:
                self._throttle(partial(write, False))

    def _run_wave(
        self, wave: list[Medium], following: list[Medium], *, follows: bool, in_full: bool
    ) -> None:
        ahead = [following]
        """The wave whose frames are cut beside this one, once."""

        def attempt() -> None:
            self.stages.frames(wave, follows=follows, in_full=in_full)
            if time.monotonic() >= self._write_at:
                self._record_progress()
            if ahead:
                self.stages.frames_ahead(ahead.pop())
            for stage in self._job.pipeline[1:]:
                self.stages.run_stage(stage, wave)

        def look_again(error: PenstockError) -> None:
            self._job.ledger.refresh()
            self._job.ledger.clear_tasks()

        with_restarts(attempt, after=(DamagedRecord, Killed), prepare=look_again)

    def _write(self, result: RunResult, last: bool) -> Mapping[MediaFile, int]:
        result.written = write_outputs(self._job, last=last)
        result.failures = result.written.failures
        result.warned = warned_files(self._job)
        self._record_outputs(result, stale=is_stale(self._job))
        self.writer.record.media.total = result.files
        self.writer.fails(result.failures)
        self._record_progress()
        return result.written.chunks

    def _record_outputs(self, result: RunResult, *, stale: bool) -> None:
        """Store in the run record what the outputs hold, and which hold results of an earlier run.
        `stale` says whether the dataset does."""
        written = result.written
        written.earlier = [*(n for n in written.earlier if n != DATASET), *[DATASET] * stale]
        record = self.writer.record
        record.captions, record.cut = written.captions, written.cut
        record.corrected, record.accepted = written.corrected, written.accepted
        record.rejected = written.rejected
        record.texts = [texts.record for texts in written.texts]
        record.earlier, record.edited = [*written.earlier], dict(written.edited)
        record.outputs = output_paths(self._job)

    def _throttle(self, do: Callable[[], object]) -> None:
        """Call a function whose time grows with the number of items, then wait before the next
        call."""
        started = time.monotonic()
        do()
        self._write_at = started + WRITING_SHARE * (time.monotonic() - started)

    def _record_progress(self) -> None:
        """Store in the run record how much work is known."""
        ledger, media = self._job.ledger, self._job.media
        tasks = ledger.tasks(media)
        first, *_, last = self._job.pipeline
        by_digest = {medium.digest: medium for medium in media}.values()
        for stage in self._job.pipeline:
            of_stage = [t for t in tasks if stage != last or not ledger.has_failed(t)]
            keys = keys_of(of_stage, stage.writes)
            tasks_left = [t for t in of_stage if not ledger.has(t, stage)]
            if stage == first:
                tasks_left = [t for t in tasks_left if not ledger.has_failed(t)]
                keys |= keys_of(
                    chain.from_iterable(map(ledger.begun_tasks, by_digest)), stage.writes
                )
            done = keys - keys_of(tasks_left, stage.writes)
            self.writer.expect(stage.name, len(keys), len(done))
        self.writer.record.media.warned = warned_files(self._job)
        self.writer.record.media.open = sum(
            ledger.media_index(m) is None and ledger.failure(m) is None for m in media
        )

    def _refresh(self) -> None:
        # Records published by other runs may have been deleted since, because those runs did not
        # know that this one needs them.
        self._job.ledger.refresh()
        if self._job.config.retry_failed:
            self._job.ledger.forget_failures(self._job.media)
