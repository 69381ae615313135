"""Computes which memory budget fits a model in which precision. Each cell is estimated
like a plan.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from flows.machine.budget import Budget
from flows.planning.changes import in_precision
from flows.planning.choose import PlanRequest, StagePlan, choices
from flows.planning.rungs import Rung

BUDGETS_GIB = (4, 6, 8, 12, 16, 24)
PRECISIONS: Mapping[str, dict[str, str]] = {
    "native": {"precision": "native"},
    "bf16": {"precision": "bf16"},
    "int8": {"precision": "int8"},
    "nf4": {"precision": "nf4"},
    "nf4, vision too": {"precision": "nf4", "vision_precision": "nf4"},
    "auto": {"precision": "auto"},
}
"""Name of a row → the options that it means."""
MARKS: Mapping[str, Callable[[Rung, Rung], bool]] = {
    "*": lambda first, taken: (taken.prefill, taken.kv) != (first.prefill, first.kv),
    "+": lambda first, taken: taken.precision != first.precision,
    "s": lambda first, taken: taken.block > 0,
    "o": lambda first, taken: taken.offload and not taken.block,
}
"""Mark → whether a rung has earned it, beside the one that was asked for."""
LEGEND = (
    "a/b: encode/decode · *: prompts in pieces or KV cache in host memory · +: quantized · "
    "s: encoder streamed layer by layer · o: weights in host memory, far slower · -: does not fit"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One cell of the table: whether a model fits, and with which rung."""

    gib: int
    fits: bool
    batches: dict[str, int]
    """Stage → chunks at once, of the stages that use the model."""
    marks: str
    """Marks of what else it takes, as `MARKS` has it."""

    def text(self) -> str:
        """Return `8`, `4/1*`: chunks at once, and what else it takes; `-`: does not fit. There are
        two numbers where encode and decode differ."""
        if not self.fits:
            return "-"
        counts = list(dict.fromkeys(self.batches.values()))
        return "/".join(map(str, counts)) + self.marks


def what_fits(question: PlanRequest, device: str) -> dict[str, list[Cell]]:
    """Return the rows. Those that the checkpoint cannot be had in are left out, and those whose
    weights take what a row above takes."""
    found: dict[str, list[Cell]] = {}
    told = set()
    for name, options in PRECISIONS.items():
        in_it = _in(question, options, device)
        if in_it is None:
            continue
        model = in_it.model
        auto = in_it.config.precision == "auto"
        takes = (*(settings[0].weight_bytes for settings in model.settings.values()), auto)
        if takes not in told:
            told.add(takes)
            found[name] = [_cell(in_it, gib) for gib in BUDGETS_GIB]
    return found


def _in(question: PlanRequest, options: dict[str, str], device: str) -> PlanRequest | None:
    changed: dict[str, Any] = {"vision_precision": None, "language_precision": None, **options}
    if not question.model.profile.language.parameters:
        changed["language_precision"] = "native"
    stages = tuple(stage for stage in question.stages if stage.part)
    return in_precision(replace(question, device=device, stages=stages), **changed)


def _cell(question: PlanRequest, gib: int) -> Cell:
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
    found: dict[str, StagePlan] = choices(question, question.rungs, budget)
    return Cell(
        gib=gib,
        fits=all(choice.fits for choice in found.values()),
        batches={stage: choice.taken.rung.batch for stage, choice in found.items()},
        marks="".join(
            mark
            for mark, earned in MARKS.items()
            if any(earned(choice.first.rung, choice.taken.rung) for choice in found.values())
        ),
    )
