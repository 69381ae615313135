"""What would have to be given for a job to fit that does not, each checked by the same arithmetic
as the refusal."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

from artifacts.errors import CannotFit, UsageError
from flows.memory.arithmetic import gib
from flows.memory.budget import Budget
from flows.memory.choose import Choice, Question, allowed, fits
from flows.memory.estimate import StageEstimate
from flows.memory.rungs import Rung
from flows.precision import QUANTIZED, settle

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
        """`--precision int8 (decode then takes 7.10 GiB)`."""
        return f"{self.option} ({self.takes.rung.stage} then takes {gib(self.takes.peak_bytes)})"


def cannot_fit(question: Question, refused: Sequence[Choice], budget: Budget) -> CannotFit:
    """The error that names what does not fit and what would."""
    worst = max(refused, key=lambda choice: choice.taken.peak_bytes)
    least = worst.taken
    rung = least.rung
    how = f"batch {rung.batch}" + (f", {rung.precision}" if rung.precision else "")
    where = "the host" if question.device == "cpu" else question.device
    message = (
        f"the {rung.stage} stage of {question.model.name} takes {gib(least.peak_bytes)} at least "
        f"({how}), and {gib(allowed(least, budget))} of {where} is allowed"
    )
    found = [change.line() for change in changes(question, worst, budget)]
    hint = f"Give {', or '.join(found[:NAMED])}" if found else "Choose a smaller model"
    return CannotFit(message, hint=hint)


def changes(question: Question, stuck: Choice, budget: Budget) -> list[Change]:
    """The smallest of each kind, gentlest first."""
    least = stuck.taken
    found = [*_other_frames(question, least, budget), *_other_precision(question, least, budget)]
    if least.peak_bytes <= budget.total_bytes:
        size = f"{math.ceil(least.peak_bytes / STEP) * STEP / (1 << 30):g}GiB"
        found.append(Change(option=f"--memory {size}", takes=least))
    return found


def _other_frames(question: Question, least: StageEstimate, budget: Budget) -> Iterator[Change]:
    most = max((load.frames for load in question.loads if load.kind == "video"), default=0)
    fewer = takewhile(lambda count: count >= 1, (most >> step for step in range(1, 32)))
    for frames in fewer:
        loads = [load.with_frames(min(frames, load.frames)) for load in question.loads]
        takes = replace(question, loads=tuple(loads)).estimate(least.rung)
        if fits(takes, budget):
            yield Change(option=f"--max-frames {frames}", takes=takes)
            return


def _other_precision(question: Question, least: StageEstimate, budget: Budget) -> Iterator[Change]:
    half = {"encode": "vision", "decode": "language"}.get(least.rung.stage)
    if half is None:
        return
    for precision in ("bf16", *QUANTIZED):
        takes = in_precision(question, half, precision, least.rung)
        if takes is not None and takes.peak_bytes < least.peak_bytes and fits(takes, budget):
            yield Change(option=f"--{half}-precision {precision}", takes=takes)
            return


def in_precision(question: Question, half: str, precision: str, rung: Rung) -> StageEstimate | None:
    """What a stage takes with its half in another precision; None when it cannot be had in it."""
    asked: dict[str, Any] = {f"{half}_precision": precision}
    config = replace(question.config, precision="native", **asked)
    try:
        settings = settle(config, question.model.card, question.device)
    except UsageError:
        return None
    vision, language = settings["vision"], settings["language"]
    model = replace(question.model, vision=vision, language=language)
    other = replace(rung, precision=(vision if half == "vision" else language).precision)
    return replace(question, model=model).estimate(other)
