"""Runs the stages of a pipeline one after another, wave by wave, with or without Prefect."""

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial

from artifacts.captions import Failure, write_jsonl
from artifacts.errors import Interrupted, Killed, ModelChanged, PenstockError
from artifacts.keys import digest_of
from artifacts.pack_object import DamagedRecord
from artifacts.packs import RecordSet
from artifacts.shards import DATASET
from artifacts.text_vectors import Groups, TextVectors, text_vectors_in
from flows.checkpoint.precision import PartSettings
from flows.job.prepare import Job
from flows.ledger.namespaces import namespace_aside
from flows.ledger.tasks import Medium
from flows.ledger.waves import waves_of
from flows.ledger.weights import stages_wanted
from flows.machine.launch import KILLS, StageCall
from flows.options.text import EngineOptions, OutputOptions, PromptOptions, TextOptions
from flows.pipelines import parts_of
from flows.planning.answer_room import longest_answer
from flows.planning.choose import question_of
from flows.planning.context_check import context_notes, loses_frames
from flows.planning.costs.summarize import nodes_of
from flows.planning.rungs import Rung
from flows.planning.sizes import estimates, wave_limit
from flows.results.dataset import is_stale, write_dataset
from flows.results.outputs import places, write_outputs
from flows.results.run_record import RunRecord
from flows.results.run_result import RunResult
from flows.results.summaries import Summaries, SummaryInput, generation_of_texts, stories
from flows.results.trainer_formats import write_trainers
from flows.running.calls import StageCallBuilder, settings_on
from flows.running.stage_runner import OneShotStage, StageRunner
from stages import embed_texts, summarize
from stages.models.hub.transfer import Announce
from stages.summarize.job import SUMMARY, SummaryItem, SummaryJob
from stages.summarize.packing import TimedText

CAPTIONS_AT_ONCE = 1 << 15
"""Captions that one process is told: those of days of video, and a few megabytes."""


class SummariesStep:
    """Makes the summaries of one job."""

    def __init__(self, job: Job, record: RunRecord, once: OneShotStage) -> None:
        self._job = job
        self._record = record
        self._once = once
        self._summaries = Summaries(job, summarize.STAGE)
        self.failures: list[Failure] = []
        """Videos of which no summary can be made, once all were tried."""

    def make(self) -> int:
        """Make the summaries that are not in the store, write all, and return their number. What
        is there is written however it ends. Raises PenstockError."""
        kills = 0
        if self._job.config.retry_failed:
            self._summaries.forget_failures()
        try:
            while missing := list(self._some_missing()):
                least = sum(nodes_of(len(story.texts)) for story in missing)
                try:
                    self._once.run(summarize.STAGE, partial(self._call, missing), total=least)
                except Killed as error:  # as of a stage that is run over media
                    kills = 0 if error.items else kills + 1
                    if kills > KILLS:
                        raise
                self._summaries.refresh()
        finally:
            written = self._summaries.write()
            self._record.value["summaries"] = len(written)
            self.failures = list(self._summaries.failures())
        texts = sum(sum(row.levels) for row in written)
        self._record.expect(summarize.STAGE.name, texts, texts)
        return len(written)

    def _some_missing(self) -> Iterator[SummaryInput]:
        """Yield videos without a summary, as many as one process is told."""
        told = 0
        for story in stories(self._job):
            if told < CAPTIONS_AT_ONCE and self._summaries.is_missing(story):
                told += len(story.texts)
                yield story

    def _call(self, some: list[SummaryInput], rung: Rung) -> StageCall:
        job = self._job
        settings = settings_on(job.model, rung)
        assert settings is not None
        items = [
            SummaryItem(
                story.digest,
                self._summaries.key(story, settings),
                [TimedText(*each) for each in story.texts],
            )
            for story in some
        ]
        make = partial(
            SummaryJob,
            store=job.store.url,
            namespace=self._summaries.namespace(settings),
            media=items,
            asked=PromptOptions.of(job.config).summary_prompt or SUMMARY,
            context=rung.context,
            max_new_tokens=EngineOptions.of(job.config).max_new_tokens,
            generation=generation_of_texts(job),
            strip_think=TextOptions.of(job.config).strip_think,
        )
        return StageCallBuilder(job).once(summarize.STAGE, make, rung)


class TextsStep:
    """Computes the text vectors of one job."""

    def __init__(self, job: Job, record: RunRecord, once: OneShotStage) -> None:
        self._job = job
        self._record = record
        self._once = once
        self._calls = StageCallBuilder(job)

    def make(self, groups: Groups, meanwhile: Callable[[], object] = bool) -> TextVectors:
        """Return the vectors of these groups, made if they are not in the store. `meanwhile` is
        called while a process makes them. Raises PenstockError."""
        key = digest_of([list(group) for group in groups])

        def call(rung: Rung) -> StageCall:
            settings = settings_on(self._job.model, rung)
            assert settings is not None
            namespace = namespace_aside(embed_texts.STAGE, self._job.model, settings)
            return self._calls.texts(groups, namespace, key, rung)

        while (found := self._known(groups, key)) is None:
            self._once.run(embed_texts.STAGE, call, by_media=False, meanwhile=meanwhile)
        return found

    def _known(self, groups: Groups, key: str) -> TextVectors | None:
        """Return the vectors that are in the store under this key, in the best precision."""
        for settings in self._job.model.settings["language"]:
            records = self._records(settings)
            if key in records:
                self._record.expect(embed_texts.STAGE.name, 1, 1)
                return text_vectors_in(records.read(key), groups, settings.label)
        return None

    def _records(self, settings: PartSettings) -> RecordSet:
        namespace = namespace_aside(embed_texts.STAGE, self._job.model, settings)
        return RecordSet(self._job.store, embed_texts.STAGE.writes, namespace)


WRITING_SHARE = 20
"""Divisor of a run's time: the outputs, written whole between waves, take one part in so many."""
REMAKES = 3
"""Number of times that the same damage in the store is met before the run gives up."""


class PipelineRunner:
    """One run over one job."""

    def __init__(
        self, job: Job, steps: StageRunner, record: RunRecord, say: Announce = lambda _: None
    ) -> None:
        """Take a job, and what tells people of it."""
        self._job = job
        self._say = say
        self._steps = steps
        self._record = record
        self._write_at = 0.0
        """When, on the monotonic clock, the outputs may be written again between waves."""

    @property
    def texts(self) -> TextsStep:
        """Return what makes vectors of texts for this job."""
        return TextsStep(self._job, self._record, self._steps.once)

    @property
    def once(self) -> OneShotStage:
        """Return what runs the stages that look at no media."""
        return self._steps.once

    def run(self) -> RunResult:
        """Bring every item to its caption. Raises what stopped the run, after writing what is
        there."""
        job = self._job
        self._begin()
        job.edits.take_in()
        result = RunResult(
            out=job.out,
            files=len(job.by_file) + len(job.failures),
            limit=EngineOptions.of(job.config).max_new_tokens,
        )
        write = partial(self._write, result)
        with self._recorded(write):
            self._waves(write)
            if PromptOptions.of(job.config).summary:
                self._summarize(result)
            self._write_data_sets(result)
        most = longest_answer(question_of(job)) if result.written.cut else None
        result.warnings += result.notes(most)
        return result

    def _summarize(self, result: RunResult) -> None:
        """Make the summaries, and note the videos of which none can be made among the failures."""
        step = SummariesStep(self._job, self._record, self._steps.once)
        result.summaries = step.make()
        if step.failures:
            result.written.failures = [*result.failures, *step.failures]
            write_jsonl(self._job.out / "failures.jsonl", result.failures)
            self._record.fails(result.failures)

    def _write_data_sets(self, result: RunResult) -> None:
        """Write what is made of all captions together, and cuts clips."""
        launcher, tell = self._steps.launcher, self._steps.tell
        stale = DATASET in result.written.earlier
        if DATASET in OutputOptions.of(self._job.config).format:
            people = result.written.people
            result.warnings += write_dataset(self._job, launcher, tell, people)
            stale = False
        trainers = write_trainers(self._job, launcher, tell)
        result.warnings += [note for note in trainers.notes if note not in result.warnings]
        result.written.people |= trainers.people
        result.written.earlier = [n for n in result.written.earlier if n not in trainers.forms]
        self._tell(result, stale=stale)

    def fill(self, write_out: Callable[[bool], None] | None = None) -> None:
        """Bring every item to its last record, and write no outputs but by `write_out`, which is
        told whether it is for the last time. Raises what stopped the run."""
        self._begin()

        def write(last: bool) -> None:
            if write_out is not None:
                write_out(last)
            self._expect()

        with self._recorded(write):
            self._waves(write)

    @contextlib.contextmanager
    def going_on(self) -> Iterator[None]:
        """Let the record say that the run goes on when its media are done, and how that ends."""
        self._record.value["state"] = "running"
        self._record.write(force=True)
        with self._recorded(bool):
            yield

    @contextlib.contextmanager
    def _recorded(self, write: Callable[[bool], object]) -> Iterator[None]:
        """Write what is there however the run ends, and tell the record how it ended."""
        try:
            yield
        except BaseException as error:
            self._steps.stop_prefetch()
            stopped = isinstance(error, Interrupted) or not isinstance(error, Exception)
            # Whatever is wrong with writing, such as a full disk, is told already.
            with contextlib.suppress(Exception):
                self._job.ledger.refresh()
                if not isinstance(error, ModelChanged):  # outputs are of one model
                    write(True)
            with contextlib.suppress(PenstockError):
                self._record.finish("interrupted" if stopped else "failed", error=str(error))
            raise
        self._record.finish("done")

    def _waves(self, write: Callable[[bool], None]) -> None:
        job = self._job
        wanted = stages_wanted(job.ledger, job.media)
        bound = job.ledger.namespaces.bound or loses_frames(job.model, job.config)
        if wanted or bound:
            expected = estimates(job)
            self._note(context_notes(job, expected))
        if not wanted:  # what is there is not measured again
            self._steps.give_back(job.media)
            self._record.value["plan"]["chunks"] = len(job.ledger.tasks(job.media))
            write(True)
            return
        self._steps.plan(wanted, expected)
        # All that will be wanted, so that a hub that cannot be reached is known before hours of
        # work and not in the middle.
        self._steps.fetch(parts_of(wanted))
        self._record.value["plan"]["chunks"] = sum(e.chunks for e in expected)
        self._seldom(self._expect)
        waves = waves_of(job.ledger, job.media, [e.bytes for e in expected], wave_limit(job))
        for number, wave in enumerate(waves):
            following = waves[number + 1] if number + 1 < len(waves) else []
            self._wave(wave, following)
            if not following or time.monotonic() >= self._write_at:
                self._seldom(partial(write, not following))

    def _note(self, lines: list[str]) -> None:
        """Tell of what is found out by the media, and keep it with the other notes."""
        for line in lines:
            self._say(line)
            self._record.value["plan"]["notes"].append(line)

    def _wave(self, wave: list[Medium], following: list[Medium]) -> None:
        kills = 0
        remakes: Counter[str] = Counter()
        begun = False
        while True:
            try:
                self._steps.frames(wave)
                if time.monotonic() >= self._write_at:
                    self._expect()
                if not begun:
                    begun = True
                    self._steps.begin_frames(following)
                for stage in self._job.pipeline[1:]:
                    self._steps.through(stage, wave)
                return
            except DamagedRecord as error:
                # However many are damaged, each costs its own part; one that is again and again
                # is the disk's fault.
                remakes[error.message] += 1
                if remakes[error.message] == REMAKES:
                    raise
            except Killed as error:
                # By whom is not told. If the kernel did it for want of memory it will again, before
                # anything is made; whoever wants the run to end stops this process.
                kills = 0 if error.items else kills + 1
                if kills > KILLS:
                    raise
            self._job.ledger.refresh()
            self._job.ledger.clear_tasks()

    def _write(self, result: RunResult, last: bool) -> None:
        result.written = write_outputs(self._job, last=last)
        self._tell(result, stale=is_stale(self._job))
        self._record.value["media"]["total"] = result.files
        self._record.fails(result.failures)
        self._expect()

    def _tell(self, result: RunResult, *, stale: bool) -> None:
        """Tell the record what the outputs hold, and which hold something else. `stale` says
        whether a dataset does."""
        written = result.written
        written.earlier = [*(n for n in written.earlier if n != DATASET), *[DATASET] * stale]
        self._record.value.update(written.to_json())
        self._record.value["outputs"] = places(self._job)

    def _seldom(self, do: Callable[[], None]) -> None:
        """Do what takes longer the more items there are, and not again for a good while."""
        started = time.monotonic()
        do()
        self._write_at = started + WRITING_SHARE * (time.monotonic() - started)

    def _expect(self) -> None:
        """Tell the record how much work there is, as far as it is known."""
        ledger, media = self._job.ledger, self._job.media
        tasks = ledger.tasks(media)
        first, *_, last = self._job.pipeline
        for stage in self._job.pipeline:
            of_stage = [t for t in tasks if stage != last or not ledger.lost(t)]
            done = {t[stage.writes] for t in of_stage if stage == first or ledger.has(t, stage)}
            self._record.expect(stage.name, len({t[stage.writes] for t in of_stage}), len(done))
        self._record.value["media"]["open"] = sum(
            ledger.index(m) is None and ledger.failure(m) is None for m in media
        )

    def _begin(self) -> None:
        # What others published before they knew that this run needs it too, they have cleared away.
        self._job.ledger.refresh()
        if self._job.config.retry_failed:
            self._job.ledger.forget_failures(self._job.media)
