"""Builds the ladder of a job, and selects the rung on which each stage starts: a stored one, or the
planned one. Also supplies the advice for the end of the ladder. Starts no stage.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from flows.job.prepare import Job
from flows.machine.budget import Budget
from flows.options.text import EngineOptions
from flows.pipelines import STAGES, Pipeline
from flows.planning.changes import NAMED, cannot_fit, changes
from flows.planning.choose import PlanRequest, StagePlan, choices, fits, memory_json, plan_request
from flows.planning.context_check import refuse_beyond_context
from flows.planning.costs import rungs_of
from flows.planning.ladder import Ladder, OnMove, Remembered
from flows.planning.rungs import Rung, sizes
from flows.planning.sizes import Estimate
from stages.process.device import device_uuid
from stages.process.stage import StageSpec


def ladder_of(job: Job, on_move: OnMove) -> Ladder:
    """Return the ladder of a job. `on_move`: callback for each move."""
    return Ladder(
        rungs_of(job.stages, job.model, job.config, job.device),
        Remembered(job.store, {s.name: _about(job, s) for s in job.stages}, job.budget.bytes),
        budget_bytes=job.budget.bytes,
        on_move=on_move,
    )


def _about(job: Job, stage: StageSpec) -> list[Any]:
    """Return everything that determines a stage's memory use, for the key of stored rungs.

    It includes all settings that the part may run in: a ladder with fewer settings may end where
    one with more would continue.
    """
    model, cut = job.model, job.ledger.namespaces[job.pipeline[0].writes]
    found: list[Any] = [device_uuid(job.device), cut]
    if stage.part:
        key_fields = [settings.key_fields for settings in model.settings[stage.part]]
        found += [model.digests[stage.part], key_fields]
    return (
        [*found, EngineOptions.of(job.config).max_new_tokens] if stage.uses_token_limit else found
    )


def choose(
    request: PlanRequest,
    budget: Budget,
    rungs: Mapping[str, Sequence[Rung]],
    known: Mapping[str, Rung],
) -> dict[str, StagePlan]:
    """Return the starting plan of each stage. `rungs`: rungs of each stage, cheapest first.
    `known`: rungs that fitted in an earlier run, used regardless of estimates. Raises CannotFit."""
    if not request.workloads:
        return {}
    found = choices(request, rungs, budget, known)
    refused = [choice for choice in found.values() if choice.refused]
    if refused:
        raise cannot_fit(request, refused, budget)
    return found


def plan_start(
    ladder: Ladder, job: Job, stages: Pipeline, expected: Sequence[Estimate]
) -> dict[str, Any]:
    """Put the stages with work left on their planned or stored rungs. Return the memory plan for
    the run record. Raises CannotFit."""
    request = plan_request(job, stages, expected)
    refuse_beyond_context(request)
    found = choose(request, job.budget, ladder.rungs, ladder.known())
    ladder.start({stage: choice.chosen.rung for stage, choice in found.items()})
    ladder.advise = lambda stage: advice(request, job, ladder, stage)
    ladder.batch_without_slots = lambda rung: batch_without_slots(request, rung, job.budget)
    prompts = [workload.tokens for workload in request.workloads]
    ladder.sequence_tokens = max(prompts, default=0) + EngineOptions.of(job.config).max_new_tokens
    ladder.fit_together = lambda stages: fit_together(
        request, [ladder.rung(stage) for stage in stages], job.budget
    )
    return memory_json(found, job.budget)


def fit_together(request: PlanRequest, rungs: Sequence[Rung], budget: Budget) -> bool:
    """Return whether stages, of which one computes on the device, are expected to fit into memory
    beside each other."""
    found = [request.estimate(rung) for rung in rungs] if request.workloads else []
    room = budget.bytes if budget.device == "cpu" else budget.host_bytes
    needed = sum(each.host_bytes or each.peak_bytes for each in found)
    return bool(found) and needed <= room and all(fits(each, budget) for each in found)


def batch_without_slots(request: PlanRequest, rung: Rung, budget: Budget) -> int:
    """Return the batch size for a rung with slots, if the engine check finds no slot support.

    It is the largest that is expected to fit, at most the number of slots and the
    requested size, and at least 1.
    """
    if not (rung.seated and request.workloads):
        return rung.batch
    plain = replace(rung, seated=False)
    largest = min(rung.batch, request.config.batch_size)
    batches = (replace(plain, batch=size) for size in sizes(largest))
    return next((each.batch for each in batches if fits(request.estimate(each), budget)), 1)


def advice(request: PlanRequest, job: Job, ladder: Ladder, stage: str) -> str:
    """Return options that would make a stage fit that ran out of memory despite its estimate."""
    if not request.workloads:
        return ""
    single_stage = replace(request, stages=(STAGES[stage],))
    smallest = choices(single_stage, ladder.rungs, job.budget)[stage].chosen
    # It used more than estimated, so a change must lower the estimate.
    budget = replace(job.budget, bytes=min(job.budget.bytes, smallest.peak_bytes - 1))
    unfit = StagePlan(requested=smallest, chosen=smallest, fits=False, refused=True)
    found = [change.option for change in changes(single_stage, unfit, budget)]
    found = [option for option in found if not option.startswith("--memory")][:NAMED]
    part = STAGES[stage].part
    if part is not None and not job.config.may_fall_back(part):
        found.append(f"--{part}-precision auto, which falls back by itself")
    return ", or ".join([*found, "more with --memory"])
