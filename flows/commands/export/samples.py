"""Selects the chunks on which a checkpoint is calibrated and evaluated. Runs no stage."""

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from artifacts.disk.files import own_folder
from artifacts.errors import PenstockError, UsageError
from flows.commands.export.options import ExportConfig, check_export_packages
from flows.core.job.prepare import Job
from flows.core.ledger.prompts import prompt_for
from flows.core.ledger.tasks import Medium, Task
from stages.export import CaptionedItem, FeaturesJob

DEMO_SEED = 0


Captioned = tuple[str, list[CaptionedItem]]
"""Cache namespace of features, and chunks with captions."""


class ExportSample(NamedTuple):
    """One chunk with the original model's output."""

    task: Task
    caption: str
    """Caption of the original model; empty for a dual encoder."""


@contextlib.contextmanager
def evaluation_media(
    config: ExportConfig, announce: Callable[[str], None]
) -> Iterator[tuple[str, ...]]:
    """Yield the sources of an export. These are the user's, or none if a store is named, or else
    clips of the demo world, which is announced. Raises MissingPackage before they are drawn."""
    check_export_packages(config)
    if config.calibrated:
        yield config.calibrate
        return
    from penstock_demo.clips import write_clips

    announce("no media given: the checkpoint is evaluated on clips of the demo world")
    with own_folder(Path(tempfile.gettempdir()), "penstock-export-") as folder:
        write_clips(folder / "clips", config.samples, DEMO_SEED)
        yield (str(folder / "clips"),)


def media_in(job: Job) -> list[Medium]:
    """Return all media of the store that were cut with the job's sampling, each with the job's
    prompt."""
    media = []
    for digest in sorted(job.ledger.records.media.keys()):
        kind = job.ledger.records.media.meta(digest)["kind"]
        prompt = prompt_for(job.model, job.config, kind)
        media.append(Medium(digest=digest, path="", kind=kind, prompt=prompt, stamp=None))
    return media


def samples_of(
    job: Job, media: Sequence[Medium], max_count: int, min_count: int
) -> list[ExportSample]:
    """Return chunks that have all records of the original model, spread over the media. Raises
    UsageError if there are fewer than `min_count`."""
    last = job.pipeline[-1]
    records = job.ledger[last.writes]
    kinds = [kind for kind in ("features", last.writes) if kind in job.ledger.variant.of]
    tasks = [
        task
        for task in job.ledger.tasks(media)
        if all(task[kind] in job.ledger[kind] for kind in kinds)
    ]
    if not tasks:
        raise UsageError(
            f"no {last.writes} of {job.model.name} in {job.store.url} to evaluate on",
            hint="Give media with --calibrate SOURCES; they are captioned first",
        )
    seen_as = tasks[0].variant[kinds[0]]
    tasks = [task for task in tasks if task.variant[kinds[0]] == seen_as]
    if len(tasks) < min_count:
        raise UsageError(
            f"too few chunks ({len(tasks)}): none is left for the evaluation after calibration",
            hint="Give more media; 128 chunks are a good number",
        )
    step = max(1, len(tasks) // max_count)
    captions = last.uses_token_limit
    return [
        ExportSample(task, records.meta(task[last.writes])["caption"] if captions else "")
        for task in tasks[::step][:max_count]
    ]


def halves_of(
    samples: Sequence[ExportSample],
) -> tuple[list[ExportSample], list[ExportSample], str]:
    """Return the samples to calibrate on, those to evaluate on, and a note, empty for none. No
    medium is on both sides; a single one is divided by time."""
    media: dict[str, list[ExportSample]] = {}
    for sample in samples:
        media.setdefault(sample.task.medium.digest, []).append(sample)
    groups, note = [*media.values()], ""
    if len(groups) == 1:
        half = (len(samples) + 1) // 2
        groups = [[*samples[:half]], [*samples[half:]]]
        note = "one file: its first half calibrates, and its second, much alike, evaluates"
    sides: tuple[list[ExportSample], list[ExportSample]] = ([], [])
    for group in groups:
        min(sides, key=len).extend(group)
    return (*sides, note)


def captioned_of(
    samples: Sequence[ExportSample], tasks: Mapping[tuple[str, int], Task]
) -> Captioned:
    """Return the namespace of the samples' features, and the samples with their captions. `tasks`
    are the tasks of the job whose features are used; empty: the original's features."""
    of_each = [tasks.get(sample.task.identity[:2], sample.task) for sample in samples]
    return of_each[0].variant["features"], [
        CaptionedItem(sample.task["captions"], task["features"], sample.task.prompt, sample.caption)
        for sample, task in zip(samples, of_each, strict=True)
    ]


def features_job(samples: Sequence[ExportSample], job: Job) -> FeaturesJob:
    """Return the job that compares the samples' features with those of a checkpoint's job. Raises
    PenstockError if the checkpoint fails on some of them."""
    kind, tasks = job.pipeline[-1].writes, tasks_by_identity(job)
    pairs = [(s.task, tasks[s.task.identity[:2]]) for s in samples]
    if failed := sum(job.ledger.has_failed(task) for _, task in pairs):
        raise PenstockError(
            f"the exported checkpoint fails on {failed} of {len(pairs)} samples",
            hint="The errors are printed above; use another --to",
        )
    return FeaturesJob(
        store=job.store.url,
        kind=kind,
        namespace=pairs[0][0].variant[kind],
        other=pairs[0][1].variant[kind],
        pairs=[[first[kind], second[kind]] for first, second in pairs],
    )


def tasks_by_identity(job: Job) -> dict[tuple[str, int], Task]:
    """Return the chunks of a job by medium and number."""
    return {task.identity[:2]: task for task in job.ledger.tasks(job.media)}
