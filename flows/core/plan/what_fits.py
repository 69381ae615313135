"""Computes which memory budgets and precisions fit a model, as a table."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from flows.core.machine.budget import Budget
from flows.core.plan.changes import in_precision
from flows.core.plan.choose import PlanRequest, StagePlan, stage_plans
from flows.core.plan.ladder import Rung

BUDGETS_GIB = (4, 6, 8, 12, 16, 24)
PRECISIONS: Mapping[str, dict[str, str]] = {
    "native": {"precision": "native"},
    "bf16": {"precision": "bf16"},
    "int8": {"precision": "int8"},
    "nf4": {"precision": "nf4"},
    "nf4, vision too": {"precision": "nf4", "vision_precision": "nf4"},
    "auto": {"precision": "auto"},
}
"""Row name → its options."""
MARKS: Mapping[str, Callable[[Rung, Rung], bool]] = {
    "*": lambda first, chosen: (chosen.prefill, chosen.kv) != (first.prefill, first.kv),
    "+": lambda first, chosen: chosen.precision != first.precision,
    "s": lambda first, chosen: chosen.block > 0,
    "o": lambda first, chosen: chosen.offload and not chosen.block,
    "u": lambda first, chosen: chosen.packed,
}
"""Mark → whether it applies, given the requested and the chosen rung."""
LEGEND = (
    "a/b: encode/decode · *: chunked prefill or KV cache in host memory · +: quantized · "
    "s: encoder streamed layer by layer · o: weights in host memory, far slower · "
    "u: unpacked layer by layer · -: does not fit"
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
    rows: dict[str, list[Cell]] = {}
    seen = set()
    for name, options in () if request.model.served else PRECISIONS.items():
        changed_request = _request_for(request, options, device)
        if changed_request is None:
            continue
        model = changed_request.model
        auto = changed_request.config.precision == "auto"
        takes = (*(settings[0].weight_bytes for settings in model.settings.values()), auto)
        if takes not in seen:
            seen.add(takes)
            rows[name] = [_cell(changed_request, gib) for gib in BUDGETS_GIB]
    return rows


def _request_for(request: PlanRequest, options: dict[str, str], device: str) -> PlanRequest | None:
    changed: dict[str, Any] = {"vision_precision": None, "language_precision": None, **options}
    if not request.model.profile.language.parameters:
        changed["language_precision"] = "native"
    stages = tuple(stage for stage in request.stages if stage.part)
    return in_precision(replace(request, device=device, stages=stages), **changed)


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
    return stage_plans(request, request.rungs, budget)


def _cell(request: PlanRequest, gib: int) -> Cell:
    plans = plans_within(request, gib << 30)
    return Cell(
        gib=gib,
        fits=all(choice.fits for choice in plans.values()),
        batches={stage: choice.chosen.rung.batch for stage, choice in plans.items()},
        marks="".join(
            mark
            for mark, applies in MARKS.items()
            if any(applies(choice.requested.rung, choice.chosen.rung) for choice in plans.values())
        ),
    )


def what_fits_lines(request: PlanRequest) -> Iterator[str]:
    """Yield which budgets fit in which precision, on this device and, on a CPU, also for a GPU."""
    devices = [request.device] + (["cuda:0"] if request.device == "cpu" else [])
    for device in devices:
        where = "this machine's CPU" if device == "cpu" else "a GPU"
        yield f"what fits   batch size by GiB of {where}"
        yield _cells("", [str(size) for size in BUDGETS_GIB])
        rows = what_fits(request, device)
        for name, cells in rows.items():
            yield _cells(name, [cell.text() for cell in cells])
        if rows:
            yield f"  {fitting_line(rows)}"
    yield f"  {LEGEND}"


def fitting_line(table: Mapping[str, Sequence[Cell]]) -> str:
    """Return from which budget each row of the table fits, in words."""
    fitting = {name: [cell.gib for cell in cells if cell.fits] for name, cells in table.items()}
    if all(budgets[:1] == [BUDGETS_GIB[0]] for budgets in fitting.values()):
        return f"yes, all fit, from {BUDGETS_GIB[0]} GiB"
    parts = [f"{name} fits from {budgets[0]} GiB" for name, budgets in fitting.items() if budgets]
    if refused := [name for name, budgets in fitting.items() if not budgets]:
        parts.append(f"not even in {BUDGETS_GIB[-1]} GiB: {', '.join(refused)}")
    return "; ".join(parts)


def _cells(name: str, cells: list[str]) -> str:
    return f"  {name:17s}" + "".join(f"{cell:>8s}" for cell in cells)
