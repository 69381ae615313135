"""What would have to be given for a job to fit that does not, each checked by the same arithmetic
as the refusal."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

from artifacts.errors import CannotFit, UsageError
from flows.console.display import gib
from flows.job.budget import Budget
from flows.job.precision import QUANTIZED, lighter, settle
from flows.pipelines import HALF_OF
from flows.planning.choose import Choice, Question, allowed, choices
from flows.planning.estimate import StageEstimate
from flows.planning.ways import is_free, rungs_of

STEP = 1 << 28
"""A budget is named in quarters of a GiB."""
NAMED = 3
"""Changes that an error names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """Something that would make a job fit."""

    option: str
    """As it is given: `--memory 14GiB`."""
    takes: StageEstimate
    """What the stage then takes, that did not fit."""

    def line(self) -> str:
        """`--precision auto (decode takes 7.10 GiB with batch 8, int8)`."""
        peak = gib(self.takes.peak_bytes)
        return f"{self.option} ({self.takes.rung.stage} takes {peak} with {self.takes.rung.name})"


def cannot_fit(question: Question, refused: Sequence[Choice], budget: Budget) -> CannotFit:
    """The error that names what does not fit and what would."""
    worst = max(refused, key=lambda choice: choice.taken.peak_bytes)
    least = worst.taken
    where = "the host" if question.device == "cpu" else question.device
    message = (
        f"the {least.rung.stage} stage of {question.model.name} takes {gib(least.peak_bytes)} at "
        f"least ({least.rung.name}), and {gib(allowed(least, budget))} of {where} is allowed"
    )
    found = [change.line() for change in changes(question, worst, budget)]
    hint = f"Give {', or '.join(found[:NAMED])}" if found else "Choose a smaller model"
    return CannotFit(message, hint=hint)


def changes(question: Question, stuck: Choice, budget: Budget) -> list[Change]:
    """What would make all stages fit, the smallest of each kind, gentlest first. `stuck` is one
    that does not."""
    stage = stuck.taken.rung.stage
    tried = (_auto(question, stage), *_frames(question), *_precisions(question, stage))
    found: list[Change] = []
    for option, other in tried:
        kinds = {change.option.split()[0] for change in found}
        if other is None or option.split()[0] in kinds:
            continue
        takes = _takes(other, stage, budget)
        if takes is not None:
            found.append(Change(option=option, takes=takes))
    more = math.ceil(_most(question, budget) / STEP) * STEP
    if more <= budget.total_bytes:
        takes = _takes(question, stage, replace(budget, bytes=more))
        if takes is not None:
            found.append(Change(option=f"--memory {more / (1 << 30):g}GiB", takes=takes))
    return found


def _takes(question: Question, stage: str, budget: Budget) -> StageEstimate | None:
    """What that stage then takes; None when it or another one still does not fit."""
    found = choices(question, rungs_of(question), budget)
    return found[stage].taken if all(choice.fits for choice in found.values()) else None


def _most(question: Question, budget: Budget) -> int:
    """The least budget that all stages keep to, each on its smallest rung."""
    return max(
        min(question.estimate(rung).peak_bytes for rung in rungs)
        for stage, rungs in rungs_of(question).items()
        if stage in question.stages and (stage != "frames" or budget.device == "cpu")
    )


def _auto(question: Question, stage: str) -> tuple[str, Question | None]:
    config, half = question.config, HALF_OF.get(stage)
    if half is None or is_free(config, half):
        return "", None
    own = config.vision_precision if half == "vision" else config.language_precision
    asked = f"{half}_precision" if own else "precision"
    return f"--{asked.replace('_', '-')} auto", in_precision(question, **{asked: "auto"})


def _frames(question: Question) -> Iterator[tuple[str, Question | None]]:
    most = max((load.frames for load in question.loads if load.kind == "video"), default=0)
    for count in takewhile(lambda count: count >= 1, (most >> step for step in range(1, 32))):
        loads = (load.with_frames(min(count, load.frames)) for load in question.loads)
        yield f"--max-frames {count}", replace(question, loads=tuple(loads))


def _precisions(question: Question, stage: str) -> Iterator[tuple[str, Question | None]]:
    half = HALF_OF.get(stage)
    # A rung that is there was tried already, or will be.
    there = {rung.precision for rung in rungs_of(question)[stage]}
    for precision in ("bf16", *QUANTIZED) if half else ():
        if precision in there:
            continue
        other = in_precision(question, **{f"{half}_precision": precision})
        yield f"--{half}-precision {precision}", other


def in_precision(question: Question, **options: str) -> Question | None:
    """The same with halves in another precision; None when they cannot be had in it."""
    changed: dict[str, Any] = options
    config, card = replace(question.config, **changed), question.model.card
    try:
        settings = settle(config, card, question.device)
    except UsageError:
        return None
    model = replace(
        question.model,
        vision=settings["vision"],
        language=settings["language"],
        lighter=lighter(config, card, question.device),
    )
    return replace(question, model=model, config=config)
