"""Times a vision half in torch and with its graphs, on the same images."""

import time
from dataclasses import replace
from itertools import chain, repeat

from stages.export import TimingJob
from stages.export.graphs.make import trials
from stages.models.loading import ModelJob
from stages.process.deferred_imports import import_transformers
from stages.process.events import EventReporter
from stages.process.job import JobFields, parse_job

SECONDS, ROUNDS = 3.0, 3
"""Least seconds, and runs, for each backend; the fastest run counts."""


def warm(fields: JobFields) -> None:
    """Import what both backends need before memory is counted."""
    import_transformers()
    import onnxruntime  # noqa: F401


def run(fields: JobFields, report: EventReporter) -> None:
    """Time both backends of a TimingJob and send a note `seconds` with `torch` and `graphs`. Raises
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
    processor, held = source.processor(), source.load_reloadable("vision")
    dual, frames = job.half.route == "dual", job.frames_per_video
    some = held.call(lambda h: trials(h, "vision", processor, dual=dual, frames_per_video=frames))
    trial = next(iter(some))
    held.call(trial.run)  # warm-up
    taken: list[float] = []
    for _ in chain(range(ROUNDS), repeat(None)):
        began = time.perf_counter()
        held.call(trial.run)
        taken.append(time.perf_counter() - began)
        if len(taken) >= ROUNDS and sum(taken) > SECONDS:
            break
    return min(taken)
