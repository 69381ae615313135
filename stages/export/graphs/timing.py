"""Times a vision half in torch and with its graphs, on the same images."""

import time
from dataclasses import replace
from itertools import chain, repeat
from typing import Any

from stages.export.graphs.samples import trials
from stages.export.jobs import TimingJob
from stages.models.loading import ModelJob
from stages.process.deferred_imports import import_transformers
from stages.process.job import parse_job
from stages.process.report import EventReporter

SECONDS, ROUNDS = 3.0, 3
"""Seconds, and times, that each is computed at least; of these the shortest counts."""


def warm(fields: dict[str, Any]) -> None:
    """Import what both need, before what the process takes is counted."""
    import_transformers()
    import onnxruntime  # noqa: F401


def run(fields: dict[str, Any], report: EventReporter) -> None:
    """Answer a TimingJob with a note `seconds`, of `torch` and of `graphs`. Raises
    PenstockError."""
    job = parse_job(TimingJob, fields)
    by = {"torch": "", "graphs": job.graphs}
    report.note(
        seconds={
            name: _fastest(replace(job, half=replace(job.half, backend=b)))
            for name, b in by.items()
        }
    )


def _fastest(job: TimingJob) -> float:
    source = ModelJob.of(job.half)
    processor, held = source.processor(), source.hold("vision")
    dual, frames = job.half.route == "dual", job.frames_a_video
    some = held.use(lambda h: trials(h, "vision", processor, dual=dual, frames_a_video=frames))
    trial = next(iter(some))
    held.use(trial.run)  # what is loaded and reserved the first time
    taken: list[float] = []
    for _ in chain(range(ROUNDS), repeat(None)):
        began = time.perf_counter()
        held.use(trial.run)
        taken.append(time.perf_counter() - began)
        if len(taken) >= ROUNDS and sum(taken) > SECONDS:
            break
    return min(taken)
