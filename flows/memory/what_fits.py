"""Which memory takes this model in which precision: budgets by precisions, each cell by the same
arithmetic as a plan."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from artifacts.errors import UsageError
from flows.memory.budget import Budget
from flows.memory.choose import Choice, Question, choices
from flows.memory.ways import rungs_of
from flows.precision import settle

BUDGETS_GIB = (4, 6, 8, 12, 16, 24)
PRECISIONS: Mapping[str, dict[str, str]] = {
    "native": {"precision": "native"},
    "bf16": {"precision": "bf16"},
    "int8": {"precision": "int8"},
    "nf4": {"precision": "nf4"},
    "nf4, vision too": {"precision": "nf4", "vision_precision": "nf4"},
}
"""What stands before a row → the options that it means."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """Whether a model fits, and how."""

    gib: int
    fits: bool
    batches: dict[str, int]
    """Stage → chunks at once, of the stages that use the model."""
    smaller: bool
    """Whether a stage is on another rung than one with a smaller batch."""

    def text(self) -> str:
        """`8`, `4/1`: chunks at once, of encode and decode where they differ; `-`: does not fit."""
        if not self.fits:
            return "-"
        counts = list(dict.fromkeys(self.batches.values()))
        return "/".join(map(str, counts)) + ("*" if self.smaller else "")


def what_fits(question: Question, device: str) -> dict[str, list[Cell]]:
    """Row by row; without those that the checkpoint cannot be had in, and those whose weights take
    what a row above takes."""
    found: dict[str, list[Cell]] = {}
    told = set()
    for name, options in PRECISIONS.items():
        in_it = _in(question, options, device)
        if in_it is None:
            continue
        takes = (in_it.model.vision.weight_bytes, in_it.model.language.weight_bytes)
        if takes not in told:
            told.add(takes)
            found[name] = [_cell(in_it, gib) for gib in BUDGETS_GIB]
    return found


def _in(question: Question, options: dict[str, str], device: str) -> Question | None:
    changed: dict[str, Any] = {"vision_precision": None, "language_precision": None, **options}
    if not question.model.card.language.parameters:
        changed["language_precision"] = "native"
    config = replace(question.config, **changed)
    try:
        settings = settle(config, question.model.card, device)
    except UsageError:
        return None
    model = replace(question.model, vision=settings["vision"], language=settings["language"])
    stages = tuple(stage for stage in question.stages if stage != "frames")
    return replace(question, model=model, config=config, device=device, stages=stages)


def _cell(question: Question, gib: int) -> Cell:
    size = gib << 30
    budget = Budget(
        device=question.device,
        bytes=size,
        given=True,
        free_bytes=size,
        total_bytes=size,
        # Of a card that is only thought of, the host is not known.
        host_bytes=1 << 60,
    )
    found: dict[str, Choice] = choices(question, rungs_of(question), budget)
    return Cell(
        gib=gib,
        fits=all(choice.fits for choice in found.values()),
        batches={stage: choice.taken.rung.batch for stage, choice in found.items()},
        smaller=any(
            replace(choice.taken.rung, batch=1) != replace(choice.first.rung, batch=1)
            for choice in found.values()
        ),
    )
