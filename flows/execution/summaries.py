"""Makes the summaries of a job's videos from their captions, and writes them."""

from collections.abc import Iterator
from functools import partial

from artifacts.texts.captions import Failure
from flows.core.job.prepare import Job
from flows.core.machine.launch import StageCall, with_restarts
from flows.core.plan.costs.summarize import nodes_of
from flows.core.plan.ladder import Rung
from flows.execution.stage_calls import StageCallBuilder, settings_on
from flows.execution.stage_runner import StageRunner
from flows.outputs.captions import (
    Summaries,
    SummaryInput,
    SummaryRow,
    summary_inputs,
    text_sampling_params,
)
from flows.outputs.chapter_tracks import write_chapters
from stages import summarize
from stages.summarize import SUMMARY, SummaryItem, SummaryJob, TimedText

CAPTIONS_AT_ONCE = 1 << 15
"""Largest number of captions in one process: days of video, and a few megabytes."""


def make_summaries(
    job: Job, stages: StageRunner
) -> tuple[list[SummaryRow], list[Failure], list[str]]:
    """Make the missing summaries of a job and write all summaries. Return the rows, a failure for
    each video that has no summary, and the names of tracks that users wrote or edited. If a stage
    raises an error, this function writes the stored summaries before it raises that error. Raises
    PenstockError."""
    writer, summaries = stages.loop.writer, Summaries(job)
    if job.config.retry_failed:
        summaries.forget_failures()

    def make_missing() -> None:
        while missing := list(_some_missing(job, summaries)):
            nodes = sum(nodes_of(len(texts)) for texts in {tuple(s.texts) for s in missing})
            call = partial(_summary_call, job, summaries, missing)
            stages.run_once(summarize.STAGE, call, total=nodes)
            summaries.refresh()

    try:
        with_restarts(make_missing, prepare=lambda error: summaries.refresh())
    finally:
        written, texts = summaries.write()
        kept_tracks = write_chapters(job, written)
        writer.record.summaries = len(written)
    writer.expect(summarize.STAGE.name, texts, texts)
    return written, list(summaries.failures()), kept_tracks


def _some_missing(job: Job, summaries: Summaries) -> Iterator[SummaryInput]:
    """Yield videos without a summary, at most as many as one process is given."""
    captions = 0
    for story in summary_inputs(job):
        if captions < CAPTIONS_AT_ONCE and summaries.is_missing(story):
            captions += len(story.texts)
            yield story


def _summary_call(
    job: Job, summaries: Summaries, some: list[SummaryInput], rung: Rung
) -> StageCall:
    settings = settings_on(job.model, rung)
    assert settings is not None
    items = [
        SummaryItem(
            story.digest,
            summaries.key(story, settings),
            [TimedText(*timed) for timed in story.texts],
        )
        for story in some
    ]
    make = partial(
        SummaryJob,
        store=job.store.url,
        namespace=summaries.namespace(settings),
        media=items,
        asked=job.config.groups.prompts.summary_prompt or SUMMARY,
        context=rung.context,
        max_new_tokens=job.config.groups.engine.max_new_tokens,
        generation=text_sampling_params(job),
        strip_think=job.config.groups.text.strip_think,
    )
    return StageCallBuilder(job).one_shot_call(summarize.STAGE, make, rung)
