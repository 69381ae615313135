"""Plans the halves of a server: rungs, memory and calls; starts nothing."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from artifacts.packs import RecordSet
from artifacts.tiles import boxes_of
from flows.job.prepare import Job
from flows.machine.launch import StageCall
from flows.options.media import VectorSamplingOptions
from flows.planning.choose import Question, question_of_model
from flows.planning.ladder import Ladder
from flows.planning.rungs import Rung
from flows.planning.sizes import UNKNOWN_SIZE
from flows.planning.start import choose
from flows.planning.workloads import STANDARD_CHUNKS, Workload, workload_of
from flows.running.calls import Calls, LivePlaces
from flows.serving.config import BatchOptions, RequestLimits
from flows.serving.half_plan import HalfPlan
from stages.process.job import told_of
from stages.process.stage import Stage

DECODER_BYTES = 768 << 20
"""Bytes that a process may take above its imports to decode one file."""


def usual_picture(job: Job) -> Workload:
    """Return the picture that batches are planned of: one in full HD, with the parts of it that are
    looked at."""
    fit, tiles = job.model.fit("image"), VectorSamplingOptions.of(job.config).tiles
    stored = fit.stored(*UNKNOWN_SIZE)
    workload = workload_of(job.model, "image", STANDARD_CHUNKS, 1, stored, UNKNOWN_SIZE, "")
    return replace(workload, parts=len(boxes_of(*stored, tiles, fit.edge)))


def plan_half(
    job: Job,
    stage: Stage,
    ladder: Ladder,
    config: BatchOptions,
    answers: Callable[[Iterable[str]], dict[str, Any]],
    places: LivePlaces,
    workloads: Sequence[Workload] = (),
) -> HalfPlan:
    """Return how one half is run. `places` is where its records go. Raises
    CannotFit."""
    asked = question_of_model(job.model, job.config, job.device, (stage,), prompt="")
    every = (*asked.workloads, *workloads)
    question: Question = replace(asked, workloads=every, any_schema=True)
    found = choose(question, job.budget, ladder.rungs, ladder.known())
    ladder.start({name: choice.taken.rung for name, choice in found.items()})
    calls = Calls(job)

    def call(rung: Rung, pipe: str, room: int) -> StageCall:
        return replace(calls.live(stage, rung, pipe, places), budget=room)

    pixels = [each.stored[0] * each.stored[1] for each in workloads]
    return HalfPlan(
        name=stage.name,
        ladder=ladder,
        peak_bytes=cache(lambda rung: question.estimate(rung).peak_bytes),
        call=call,
        answers=answers,
        most=config.max_batch,
        weight=max(pixels, default=1 << 40),
        wait_seconds=config.max_wait,
        idle_seconds=60 * config.idle,
    )


def decoding_call(job: Job, most: RequestLimits, store: str) -> Callable[[str], StageCall]:
    """Return the call of a process that decodes for a job, over a pipe."""
    calls = Calls(job)
    call = calls.frames([], Rung(stage=job.pipeline[0].name, batch=1))
    chunks = max(1, round(most.clip_seconds / job.sampling.chunk_seconds))

    def over(pipe: str) -> StageCall:
        told = replace(
            calls.frames_job(),
            store=store,
            live=pipe,
            most_pixels=most.pixels,
            most_chunks=chunks,
        )
        return replace(
            call, name="cut_live", arguments=told_of(told), budget=DECODER_BYTES, stays=True
        )

    return over


def read_and_drop(records: RecordSet) -> Callable[[Iterable[str]], dict[str, Any]]:
    """Return what takes records out of a store that is there only until they are read."""

    def answers(keys: Iterable[str]) -> dict[str, Any]:
        wanted = list(keys)
        records.find(wanted)
        if not all(key in records for key in wanted):  # they came in several packs
            records.refresh()
        found = {key: records.read(key) for key in wanted}
        records.drop(wanted)
        return found

    return answers
