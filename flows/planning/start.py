"""Builds the ladder of a job, and selects the rung on which each stage starts: a stored one, or the
planned one. Starts no stage. It also supplies the advice for the end of the ladder.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from flows.job.prepare import Job
from flows.machine.budget import Budget
from flows.options.text import EngineOptions
from flows.pipelines import STAGES, Pipeline
from flows.planning.changes import NAMED, cannot_fit, changes
from flows.planning.choose import PlanRequest, StagePlan, choices, fits, memory_json, question_of
from flows.planning.context_check import refuse_beyond_context
from flows.planning.costs import rungs_of
from flows.planning.ladder import Ladder, Remembered, Told
from flows.planning.rungs import Rung, sizes
from flows.planning.sizes import Estimate
from stages.process.device import device_uuid
from stages.process.stage import StageSpec


def ladder_of(job: Job, tell: Told) -> Ladder:
    """Return the ladder of a run over a job; `tell` is given what happens on it."""
    return Ladder(
        rungs_of(job.stages, job.model, job.config, job.device),
        Remembered(job.store, {s.name: _about(job, s) for s in job.stages}, job.budget.bytes),
        budget_bytes=job.budget.bytes,
        tell=tell,
    )


def _about(job: Job, stage: StageSpec) -> list[Any]:
    """Return all that decides what a stage takes. The settings that its part may be run in are
    among it: below all that one ladder has there is nothing that another one, which has more, could
    be told."""
    model, cut = job.model, job.ledger.namespaces[job.pipeline[0].writes]
    found: list[Any] = [device_uuid(job.device), cut]
    if stage.part:
        key_fields = [settings.key_fields for settings in model.settings[stage.part]]
        found += [model.digests[stage.part], key_fields]
    return (
        [*found, EngineOptions.of(job.config).max_new_tokens] if stage.uses_token_limit else found
    )


def choose(
    question: PlanRequest,
    budget: Budget,
    rungs: Mapping[str, Sequence[Rung]],
    known: Mapping[str, Rung],
) -> dict[str, StagePlan]:
    """Return what each stage of a question starts on. `rungs` are those of each stage, cheapest
    first; `known` is where a stage was found to fit before, whatever is expected of it. Raises
    CannotFit."""
    if not question.workloads:
        return {}
    found = choices(question, rungs, budget, known)
    refused = [choice for choice in found.values() if choice.refused]
    if refused:
        raise cannot_fit(question, refused, budget)
    return found


def plan_start(
    ladder: Ladder, job: Job, stages: Pipeline, expected: Sequence[Estimate]
) -> dict[str, Any]:
    """Put the stages with work to do on the rungs on which they should fit, or did. Returns what
    they are expected to take, for the record. Raises CannotFit."""
    question = question_of(job, stages, expected)
    refuse_beyond_context(question)
    found = choose(question, job.budget, ladder.rungs, ladder.known())
    ladder.start({stage: choice.taken.rung for stage, choice in found.items()})
    ladder.advise = lambda stage: advice(question, job, ladder, stage)
    ladder.instead = lambda rung: batch_instead(question, rung, job.budget)
    return memory_json(found, job.budget)


def batch_instead(question: PlanRequest, rung: Rung, budget: Budget) -> int:
    """Return the largest batch that fits in place of the slots of a rung, should a trial show that
    there are none: as large as there are slots at most, and one where none is expected to fit."""
    if not (rung.seated and question.workloads):
        return rung.batch
    plain = replace(rung, seated=False)
    batches = (replace(plain, batch=size) for size in sizes(rung.batch))
    return next((each.batch for each in batches if fits(question.estimate(each), budget)), 1)


def advice(question: PlanRequest, job: Job, ladder: Ladder, stage: str) -> str:
    """Say what would make a stage fit that did not, whatever was expected of it."""
    if not question.workloads:
        return ""
    asked = replace(question, stages=(STAGES[stage],))
    least = choices(asked, ladder.rungs, job.budget)[stage].taken
    # It took more than was expected: so what would do has to be expected to take less than that.
    budget = replace(job.budget, bytes=min(job.budget.bytes, least.peak_bytes - 1))
    unfit = StagePlan(first=least, taken=least, fits=False, refused=True)
    found = [change.option for change in changes(asked, unfit, budget)]
    found = [option for option in found if not option.startswith("--memory")][:NAMED]
    part = STAGES[stage].part
    if part is not None and not job.config.may_fall_back(part):
        found.append(f"--{part}-precision auto, which goes lower by itself")
    return ", or ".join([*found, "more with --memory"])
