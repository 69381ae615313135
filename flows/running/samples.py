"""Selects the chunks that a checkpoint is calibrated and evaluated on. Runs nothing."""

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from artifacts.errors import UsageError
from artifacts.words import counted
from flows.job.prepare import Job
from flows.ledger.tasks import Medium, Task
from flows.options.export_config import ExportConfig
from stages.export.jobs import CaptionedItem, FeaturesJob

DEMO_SEED = 0


Captioned = tuple[str, list[CaptionedItem]]
"""Namespace of features, and chunks with captions."""


class ExportSample(NamedTuple):
    """One chunk with the original model's output."""

    task: Task
    caption: str
    """Words of the original; empty of one that makes vectors."""


@contextlib.contextmanager
def judging_media(config: ExportConfig, say: Callable[[str], None]) -> Iterator[tuple[str, ...]]:
    """Yield the sources of an export: its own, none when a store is named, else clips of the demo
    world, which is said."""
    if config.asked().calibrated:
        yield config.calibrate
        return
    from penstock_demo.clips import write_clips

    say("no media are given: it is judged by clips of the demo world")
    with tempfile.TemporaryDirectory(prefix="penstock-export-") as folder:
        clips = Path(folder) / "clips"
        write_clips(clips, config.samples, DEMO_SEED)
        yield (str(clips),)


def media_in(job: Job) -> list[Medium]:
    """Return all that the store has of media, in the job's sampling, each with the job's prompt."""
    found = []
    for digest in sorted(job.ledger.media.keys()):
        kind = job.ledger.media.meta(digest)["kind"]
        prompt = job.model.prompt_for(job.config, kind)
        found.append(Medium(digest=digest, path="", kind=kind, prompt=prompt, stamp=None))
    return found


def samples_of(job: Job, media: Sequence[Medium], most: int, least: int) -> list[ExportSample]:
    """Return the chunks of which all is there that the original makes, spread over the media.
    Raises UsageError where there are less than `least`."""
    last = job.pipeline[-1]
    kept = job.ledger[last.writes]
    wanted = [kind for kind in ("features", last.writes) if kind in job.ledger.namespaces.of]
    found = [
        task
        for task in job.ledger.tasks(media)
        if all(task[kind] in job.ledger[kind] for kind in wanted)
    ]
    if not found:
        raise UsageError(
            f"{job.store.url} holds no {last.writes} of {job.model.name} to judge it by",
            hint="Give media with --calibrate SOURCES: they are captioned first",
        )
    seen_as = found[0].namespaces[wanted[0]]
    found = [task for task in found if task.namespaces[wanted[0]] == seen_as]
    if len(found) < least:
        raise UsageError(
            f"there is {counted(len(found), 'chunk')}, and none is left to judge by what the "
            "weights are calibrated on",
            hint="Give more media: 128 chunks are a good number",
        )
    step = max(1, len(found) // most)
    captions = last.uses_token_limit
    return [
        ExportSample(task, kept.meta(task[last.writes])["caption"] if captions else "")
        for task in found[::step][:most]
    ]


def captioned_of(
    samples: Sequence[ExportSample], tasks: Mapping[tuple[str, int], Task]
) -> Captioned:
    """Return the namespace of the samples' features, and the samples with their words. `tasks` are
    those of another job by which they were seen; empty: they are as the original saw them."""
    of_each = [tasks.get(sample.task.place[:2], sample.task) for sample in samples]
    return of_each[0].namespaces["features"], [
        CaptionedItem(sample.task["captions"], task["features"], sample.task.prompt, sample.caption)
        for sample, task in zip(samples, of_each, strict=True)
    ]


def features_job(samples: Sequence[ExportSample], job: Job) -> FeaturesJob:
    """Return the job to compare the features of the samples with those of a checkpoint's job."""
    kind, tasks = job.pipeline[-1].writes, by_place(job)
    found = [(s.task, tasks[s.task.place[:2]]) for s in samples]
    return FeaturesJob(
        store=job.store.url,
        kind=kind,
        namespace=found[0][0].namespaces[kind],
        other=found[0][1].namespaces[kind],
        pairs=[[first[kind], second[kind]] for first, second in found],
    )


def by_place(job: Job) -> dict[tuple[str, int], Task]:
    """Return the chunks of a job by medium and number."""
    return {task.place[:2]: task for task in job.ledger.tasks(job.media)}
