"""From a job to its ladder: where each stage starts, by what is remembered and what is planned, and
what is said at the ladder's end; starts no stage."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from flows.job.budget import Budget
from flows.job.prepare import Job
from flows.pipelines import HALF_OF
from flows.planning.changes import NAMED, cannot_fit, changes
from flows.planning.choose import Choice, Question, choices, memory_json, question_of
from flows.planning.ladder import Ladder, Told
from flows.planning.remembered import Remembered
from flows.planning.rungs import Rung
from flows.planning.sizes import Estimate
from flows.planning.ways import is_free, rungs_for
from stages.process.device import device_uuid


def ladder_of(job: Job, tell: Told) -> Ladder:
    """The ladder of a run over a job; `tell` is given what happens on it."""
    model, frames = job.model, job.ledger.scopes.frames
    here = [device_uuid(job.device), frames]
    # What each half may be run in is among it: below all that one ladder has there is nothing that
    # another one, which has more, could be told.
    vision, language = (
        [settings.decides for settings in model.settings(half)] for half in ("vision", "language")
    )
    about = {
        "frames": here,
        "encode": [*here, model.vision_digest, vision],
        "decode": [*here, model.language_digest, language, job.config.max_new_tokens],
    }
    remembered = Remembered(job.store, about, job.budget.bytes)
    return Ladder(
        rungs_for(model, job.config, job.device),
        remembered,
        budget_bytes=job.budget.bytes,
        tell=tell,
    )


def choose(
    question: Question,
    budget: Budget,
    rungs: Mapping[str, Sequence[Rung]],
    known: Mapping[str, Rung],
) -> dict[str, Choice]:
    """What each stage of a question starts on. `rungs`: of each stage, cheapest first; `known`:
    where a stage was found to fit before, whatever is expected of it. Raises CannotFit."""
    if not question.loads:
        return {}
    found = choices(question, rungs, budget, known)
    refused = [choice for choice in found.values() if choice.refused]
    if refused:
        raise cannot_fit(question, refused, budget)
    return found


def plan_start(
    ladder: Ladder, job: Job, stages: Sequence[str], expected: Sequence[Estimate]
) -> dict[str, Any]:
    """Put the stages that have work to do on the rungs on which they are expected to fit, or did;
    returns what they are expected to take, for the record. Raises CannotFit."""
    question = question_of(job, stages, expected)
    found = choose(question, job.budget, ladder.rungs, ladder.known())
    ladder.start({stage: choice.taken.rung for stage, choice in found.items()})
    ladder.advise = lambda stage: advice(question, job, ladder, stage)
    return memory_json(found, job.budget)


def advice(question: Question, job: Job, ladder: Ladder, stage: str) -> str:
    """What would make a stage fit that did not, whatever was expected of it."""
    if not question.loads:
        return ""
    asked = replace(question, stages=(stage,))
    least = choices(asked, ladder.rungs, job.budget)[stage].taken
    # It took more than was expected: so what would do has to be expected to take less than that.
    budget = replace(job.budget, bytes=min(job.budget.bytes, least.peak_bytes - 1))
    stuck = Choice(first=least, taken=least, fits=False, refused=True)
    found = [change.option for change in changes(asked, stuck, budget)]
    found = [option for option in found if not option.startswith("--memory")][:NAMED]
    half = HALF_OF.get(stage)
    if half is not None and not is_free(job.config, half):
        found.append(f"--{half}-precision auto, which goes lower by itself")
    return ", or ".join([*found, "more with --memory"])
