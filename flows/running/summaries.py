"""Gets the summaries of a job's videos: from the store, or of a process that loads the language
half alone, and is told captions."""

from collections.abc import Iterator
from functools import partial

from artifacts.captions import Failure
from artifacts.errors import Killed
from flows.job.prepare import Job
from flows.machine.launch import KILLS, StageCall
from flows.options.text import EngineOptions, PromptOptions, TextOptions
from flows.planning.costs.summarize import nodes_of
from flows.planning.rungs import Rung
from flows.results.run_record import RunRecord
from flows.results.summaries import Story, Summaries, generation_of_texts, stories
from flows.running.calls import Calls, settings_on
from flows.running.once import OnceStep
from stages import summarize
from stages.summarize.job import SUMMARY, SummaryItem, SummaryJob
from stages.summarize.packing import Told

CAPTIONS_AT_ONCE = 1 << 15
"""Captions that one process is told: those of days of video, and a few megabytes."""


class SummariesStep:
    """Makes the summaries of one job."""

    def __init__(self, job: Job, record: RunRecord, once: OnceStep) -> None:
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

    def _some_missing(self) -> Iterator[Story]:
        """Yield videos without a summary, as many as one process is told."""
        told = 0
        for story in stories(self._job):
            if told < CAPTIONS_AT_ONCE and self._summaries.is_missing(story):
                told += len(story.texts)
                yield story

    def _call(self, some: list[Story], rung: Rung) -> StageCall:
        job = self._job
        settings = settings_on(job.model, rung)
        assert settings is not None
        items = [
            SummaryItem(
                story.digest,
                self._summaries.key(story, settings),
                [Told(*each) for each in story.texts],
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
        return Calls(job).once(summarize.STAGE, make, rung)
