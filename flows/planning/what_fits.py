"""Computes the table of memory budgets and precisions that fit a model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from flows.checkpoint.gguf import GgufUse
from flows.checkpoint.precision import with_gguf
from flows.machine.budget import Budget
from flows.planning.changes import in_precision
from flows.planning.choose import PlanRequest, StagePlan, choices
from flows.planning.rungs import Rung
from stages.models.gguf import FAMILIES, GgufShape

BUDGETS_GIB = (4, 6, 8, 12, 16, 24)
PRECISIONS: Mapping[str, dict[str, str]] = {
    "native": {"precision": "native"},
    "bf16": {"precision": "bf16"},
    "int8": {"precision": "int8"},
    "nf4": {"precision": "nf4"},
    "nf4, vision too": {"precision": "nf4", "vision_precision": "nf4"},
    **{f"gguf-{name}": {"precision": "native"} for name in ("q8_0", "q4_k_m", "q4_0")},
    "auto": {"precision": "auto"},
}
"""Row name → its options."""
BITS = {"gguf-q8_0": 8.5, "gguf-q4_k_m": 5.0, "gguf-q4_0": 4.7}
"""Kind of a GGUF file → bits per number, scales and a finer embedding table included."""
MARKS: Mapping[str, Callable[[Rung, Rung], bool]] = {
    "*": lambda first, chosen: (chosen.prefill, chosen.kv) != (first.prefill, first.kv),
    "+": lambda first, chosen: chosen.precision != first.precision,
    "s": lambda first, chosen: chosen.block > 0,
    "o": lambda first, chosen: chosen.offload and not chosen.block,
}
"""Mark → whether it applies, given the requested and the chosen rung."""
LEGEND = (
    "a/b: encode/decode · *: chunked prefill or KV cache in host memory · +: quantized · "
    "s: encoder streamed layer by layer · o: weights in host memory, far slower · -: does not fit"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One cell of the table: whether a model fits, and with which rung."""

    gib: int
    fits: bool
    batches: dict[str, int]
    """Stage with a model → batch size."""
    marks: str
    """Marks of further changes, from `MARKS`."""

    def text(self) -> str:
        """Return the batch size and marks, such as `8` or `4/1*`; `-`: does not fit. Two numbers:
        encode and decode differ."""
        if not self.fits:
            return "-"
        counts = list(dict.fromkeys(self.batches.values()))
        return "/".join(map(str, counts)) + self.marks


def what_fits(request: PlanRequest, device: str) -> dict[str, list[Cell]]:
    """Return the rows of the table. Leaves out precisions that the checkpoint does not support, and
    rows with the same weight sizes as a row above."""
    found: dict[str, list[Cell]] = {}
    seen = set()
    for name, options in () if request.model.served else PRECISIONS.items():
        changed_request = _request_for(request, options, device)
        if changed_request is not None and name in BITS:
            changed_request = _in_gguf(changed_request, name)
        if changed_request is None:
            continue
        model = changed_request.model
        auto = changed_request.config.precision == "auto"
        takes = (*(settings[0].weight_bytes for settings in model.settings.values()), auto)
        if takes not in seen:
            seen.add(takes)
            found[name] = [_cell(changed_request, gib) for gib in BUDGETS_GIB]
    return found


def _request_for(request: PlanRequest, options: dict[str, str], device: str) -> PlanRequest | None:
    changed: dict[str, Any] = {"vision_precision": None, "language_precision": None, **options}
    if not request.model.profile.language.parameters:
        changed["language_precision"] = "native"
    stages = tuple(stage for stage in request.stages if stage.part)
    return in_precision(replace(request, device=device, stages=stages), **changed)


def _in_gguf(request: PlanRequest, kind: str) -> PlanRequest | None:
    """Return the request with the language half in a GGUF file that could be exported; None if it
    cannot be."""
    model, half = request.model, request.model.profile.language
    best = model.settings.get("language", (None,))[0]
    if model.profile.model_type not in FAMILIES or best is None or not best.engine:
        return None
    if half.stored_as or best.gguf or best.adapter or half.row_memory is None:
        return None
    use = GgufUse(
        path="",
        kind=kind,
        digest="",
        bytes=round(half.parameters * BITS[kind] / 8),
        parameters=half.parameters,
        shape=GgufShape(
            width=model.profile.feature_width,
            inner=half.widest_linear,
            heads=0,
            whole=False,
            exact=False,
        ),
        replaced=half.parameters,
    )
    language = (with_gguf(request.config, best, use),)
    settings = {**model.settings, "language": language}
    return replace(request, model=replace(model, settings=settings))


def plans_within(request: PlanRequest, size: int) -> dict[str, StagePlan]:
    """Return the plan of each stage on a hypothetical device that allows so many bytes."""
    budget = Budget(
        device=request.device,
        bytes=size,
        given=True,
        free_bytes=size,
        total_bytes=size,
        # The host of a hypothetical GPU is unknown, so it sets no limit.
        host_bytes=1 << 60,
    )
    return choices(request, request.rungs, budget)


def _cell(request: PlanRequest, gib: int) -> Cell:
    found = plans_within(request, gib << 30)
    return Cell(
        gib=gib,
        fits=all(choice.fits for choice in found.values()),
        batches={stage: choice.chosen.rung.batch for stage, choice in found.items()},
        marks="".join(
            mark
            for mark, applies in MARKS.items()
            if any(applies(choice.requested.rung, choice.chosen.rung) for choice in found.values())
        ),
    )
