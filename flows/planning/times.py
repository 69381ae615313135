"""Estimates the remaining time of a job on a machine with measurements. Opens no file."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from flows.console.units import duration
from flows.job.prepare import Job
from flows.options.text import EngineOptions
from flows.pipelines import STAGES
from flows.planning.costs import COSTS
from flows.planning.ladder import Rung
from flows.planning.machine import ADVICE, Machine, find_machine, seconds
from flows.planning.sizes import Estimate
from flows.planning.workloads import remaining_work


def stage_seconds(
    job: Job,
    rungs: Mapping[str, Rung],
    found: Sequence[Estimate],
    machine: Machine,
    new_tokens: int | None = None,
) -> dict[str, float | None]:
    """Return the seconds of each stage; None if a needed measurement is missing. `new_tokens`:
    assumed caption length; None: the maximum."""
    left = remaining_work(job, found)
    new = EngineOptions.of(job.config).max_new_tokens if new_tokens is None else new_tokens
    work = {
        stage: COSTS[stage].work_left(job.model, rung, left, new) for stage, rung in rungs.items()
    }
    return {stage: seconds(machine, each) for stage, each in work.items()}


CLIP_DECODES = 8
"""Time of an exact clip in decodes of its frames (`python -m benchmarks.clips`)."""


def clip_seconds(device: str, pixels: float) -> float | None:
    """Return the seconds of making exact clips with so many pixels, if this machine was measured.
    One core is left free."""
    machine = find_machine(device).machine
    if machine is None or not machine.video_pixels:
        return None
    share = max(1, machine.cores - 1) / machine.cores
    return CLIP_DECODES * pixels / (machine.video_pixels * share)


@dataclass(frozen=True, kw_only=True, slots=True)
class Times:
    """The times of a plan."""

    seconds: dict[str, float | None] | None
    """Stage → seconds, None if unknown; None without measurements."""
    line: str
    """The same as text."""


def times_of(
    job: Job,
    rungs: Mapping[str, Rung],
    found: Sequence[Estimate],
    processes: Callable[[Rung], int] = lambda rung: 1,
) -> Times:
    """Return the remaining time of a job, if this machine was measured. `rungs`: starting rung of
    each stage. `found`: estimate of each medium. `processes`: as in Ladder."""
    known = find_machine(job.device)
    if known.machine is None:
        return Times(seconds=None, line=f"unknown: {known.why}; {ADVICE}")
    each = {
        stage: None if alone is None else alone / processes(rungs[stage])
        for stage, alone in stage_seconds(job, rungs, found, known.machine).items()
    }
    bound = {stage: "up to " * STAGES[stage].uses_token_limit for stage in each}
    texts = [
        f"{stage} {'unknown' if s is None else bound[stage] + duration(s)}"
        for stage, s in each.items()
    ]
    line = ", ".join(texts)
    if any(STAGES[stage].uses_token_limit for stage in each):
        line += f" (captions of {EngineOptions.of(job.config).max_new_tokens} tokens)"
    return Times(seconds=each, line=f"{line}; {known.why}" if known.why else line)
