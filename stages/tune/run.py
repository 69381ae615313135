"""The tune stage: feature records and captions to an adapter, in one process. It knows neither
frames nor the vision half."""

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

from artifacts.errors import UsageError
from artifacts.files import write_json
from artifacts.packs import RecordSet
from artifacts.store import open_store
from stages.decode.stored import read_features
from stages.models.adapters.reading import ADAPTER_WEIGHTS
from stages.models.loading import ModelJob, facts
from stages.models.loading import warm as warm_model
from stages.process.job import job_of, told_of
from stages.process.report import Report
from stages.tune.adapter import add_adapter, write_adapter
from stages.tune.checkpoint import TrainingProgress, go_on, keep
from stages.tune.exam import Exam
from stages.tune.job import RECORD, TuneJob
from stages.tune.lessons import Lesson, check, end_of, ended, lesson_of
from stages.tune.order import examples_of
from stages.tune.training import Trainer, optimizer_of, rate_at, recomputing


def warm(told: dict[str, Any]) -> None:
    """Import what training needs, before what the stage takes is counted."""
    import peft  # noqa: F401

    warm_model(told)


def run(told: dict[str, Any], report: Report) -> None:
    """Train the adapter of a TuneJob, from where an earlier process was, and write it."""
    job = job_of(TuneJob, told)
    if is_written(job):
        return
    source = ModelJob.of(told_of(job))
    processor, held = source.processor(), source.hold("language")
    report.note(ready=True, **facts(held.model))
    report.total(job.steps)
    held.use(partial(_tune, job, processor, report))


def _tune(job: TuneJob, processor: Any, report: Report, half: Any) -> None:
    folder = Path(job.folder)
    lessons = _lessons(job, processor, half, job.examples)
    held_out = _lessons(job, processor, half, job.held_out)
    check(half, processor, lessons[0])
    end = end_of(half, processor, lessons[:4])
    lessons = [ended(lesson, end) for lesson in lessons]
    held_out = [ended(lesson, end) for lesson in held_out]
    right = [member["caption"].strip() for member in job.held_out]
    trained = add_adapter(half, job.rank, job.seed)
    optimizer = optimizer_of(job.optimizer, trained, job.rate)
    progress = go_on(folder, job.recipe, trained, optimizer)
    half.train()
    if job.recompute:
        recomputing(half)
    trainer = Trainer(half, processor, trained, optimizer, report, job.rows)

    exam = Exam(half, processor, held_out, right, job)
    if not progress.scores:
        exam.score(progress, report)
    epoch = math.ceil(len(lessons) / job.batch)
    while progress.step < job.steps:
        places = examples_of(progress.step, len(lessons), job.batch, job.seed)
        rate = rate_at(progress.step, job.steps, job.rate)
        progress.losses.append(trainer.step([lessons[at] for at in places], rate))
        progress.step += 1
        report.item(f"step {progress.step}")
        last = progress.step == job.steps
        if progress.step % epoch == 0 or last:
            exam.look(progress, trained, report)
        if progress.step % job.checkpoint_steps == 0 or last:
            keep(folder, job.recipe, progress, trained, optimizer)
    for parameter, value in zip(trained, progress.best, strict=False):
        parameter.data.copy_(value)
    exam.score(progress, report)
    write_adapter(half, folder, job.model)
    write_json(folder / RECORD, _record(job, progress, trained, end))


def is_written(job: TuneJob) -> bool:
    """Return whether the very adapter is there."""
    folder = Path(job.folder)
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    same = isinstance(record, dict) and record.get("recipe") == job.recipe
    return same and (folder / ADAPTER_WEIGHTS).is_file()


def _record(job: TuneJob, progress: TrainingProgress, trained: Any, end: int) -> dict[str, Any]:
    return {
        "recipe": job.recipe,
        "steps": progress.step,
        "examples": len(job.examples),
        "held_out": len(job.held_out),
        "trained_parameters": sum(each.numel() for each in trained),
        "end_token": end,
        "losses": progress.losses,
        "held_out_losses": progress.held_out,
        "best_step": progress.best_step or progress.step,
        "scores": progress.scores,
    }


def _lessons(
    job: TuneJob, processor: Any, half: Any, members: list[dict[str, str]]
) -> list[Lesson]:
    features = RecordSet(open_store(job.store), "features", job.features_namespace)
    found = [
        lesson_of(
            half, processor, read_features(features, m["features"]), m["prompt"], m["caption"]
        )
        for m in members
    ]
    if not found and members is job.examples:
        raise UsageError("there is no example to train on", hint="Give more captions")
    return found
