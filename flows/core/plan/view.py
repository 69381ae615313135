"""Formats a plan as text, and computes which memory budgets and precisions fit a model.

The text has the result first, then memory by stage. The budgets and precisions form a table.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from artifacts.schema import Part
from artifacts.wording import counted, first_of
from flows.core.checkpoint.precision import weight_bytes
from flows.core.console.lines import duration, gib, table_lines
from flows.core.job.plan_record import HalfRecord
from flows.core.job.summary import halves
from flows.core.machine.budget import Budget
from flows.core.pipelines import STAGES
from flows.core.plan.changes import in_precision
from flows.core.plan.choose import PlanRequest, StagePlan, allowed, stage_plans
from flows.core.plan.ladder import Rung
from flows.core.plan.plan import Plan, figures
from flows.core.plan.sizes import SHOT_SECONDS
from flows.core.plan.stage_estimate import ON_DEVICE, StageEstimate
from stages import tune

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


GIB = 1 << 30
COLUMNS = ("", "weights", "computing", "KV cache", "workspace", "context", "peak", "rung")
COSTS = {
    "files": "fewer files at once take longer",
    "batch": "smaller batches take somewhat longer",
    "prefill": "chunked prefill takes a little longer",
    "offloaded": "a KV cache in host memory is copied for each token: 2 to 5 times longer",
    "quantized": "a quantized KV cache changes some words",
    "precision": "quantized weights change some words",
    "context": "shorter contexts make more and shorter chapters",
    "block": "reading layers once per block of chunks costs little with many chunks",
    "offload": "weights outside the device are copied for each token: 20 to 40 times longer",
    "packed": "layers are unpacked for each token: the same words, slower with few rows",
}
"""Changed property of a rung → its cost."""
FRAMES_GO = "deleted after use; another prompt cuts them again, unless --keep-frames keeps them"
UNUSABLE = {"no-video": "without video", "too-large": "too large", "crashed": "crashed a stage"}
"""Kind of a failure → how a plan names it, if not as a file that cannot be opened."""
TABLE = Path(__file__).parent / "cards" / "largest.json"
"""The public models that `python -m scripts.pages.cards` planned."""
NAMES = {
    "gpu": {"unquantized": "unquantized", "quantized": "with --precision auto"},
    "cpu": {"unquantized": "in 32 bit, slow without a GPU"},
}
"""Kind of device → key of the table → the note about the model."""


def plan_lines(plan: Plan) -> list[str]:
    """Return the lines of a plan without `--explain`."""
    values = figures(plan)
    where = "a server" if plan.request.model.served else values["device"]
    lines = [*verdict(plan), f"model       {values['model']} on {where}"]
    rungs = [choice.chosen.rung for choice in plan.stage_plans.values()]
    packed = {STAGES[rung.stage].part for rung in rungs if rung.packed}
    lines += [
        f"  {name:10s}{_weights_of(plan, name, half, packed=name in packed)}, "
        f"{half.parameters / 1e6:.1f} M parameters, {half.computed_by}"
        for name, half in halves(plan.request.model).items()
        if half.parameters
    ]
    if plan.job:
        lines += _of_media(plan, values)
        if plan.request.model.served and not plan.job.config.keep_frames:
            lines.append(f"frames      {FRAMES_GO}")
    else:
        # A training on stored features reads no sources.
        why = "" if tune.STAGE in plan.request.stages else "no SOURCES given: "
        lines.append(f"assumed     {why}{plan.request.workloads[0].line()}")
    lines += [*memory_lines(plan), *_costs(plan)]
    lines += [f"note        {note}" for note in values["notes"]]
    captions = plan.request.model.profile.route not in ("dual", "served")
    if captions and (line := largest_models_line(plan.budget)):
        lines.append(f"largest     {line}")
    if plan.job and values["failed"]:
        count = counted(values["failed"], "source")
        lines.append(f"missing     {count}: {plan.job.failures[0].media_path} …")
    return lines


def _weights_of(plan: Plan, part: Part, shown: HalfRecord, *, packed: bool) -> str:
    half = plan.request.model.profile.parts[part]
    if not packed:
        return f"{gib(shown.bytes)} of weights in {shown.precision}"
    held = weight_bytes(half, shown.precision, shown.dtype, packed=True)
    return f"{gib(held)} of weights in {shown.precision} ({half.packed_form})"


def largest_models_line(budget: Budget) -> str:
    """Return one line that names the largest models that fit; empty where none does."""
    kind = "gpu" if budget.device.startswith("cuda") else "cpu"
    table: dict[str, list[dict[str, Any]]] = json.loads(TABLE.read_text(encoding="utf-8"))
    rows = [row for row in table[kind] if row["bytes"] <= budget.bytes]
    if not rows:
        return ""
    largest = max(rows, key=lambda row: row["bytes"])
    names = [f"{largest[key]} {words}" for key, words in NAMES[kind].items() if key in largest]
    if not names:
        return ""
    return f"{', '.join(names)} (planned for {gib(largest['bytes'])}; docs/cards.md)"


def verdict(plan: Plan) -> Iterator[str]:
    """Yield whether the command fits, and what to do if not."""
    if plan.refusal is not None:
        yield f"does not fit: {plan.refusal.message}"
        yield f"instead     {plan.refusal.hint}"
        return
    if not plan.stage_plans:
        yield "nothing to compute: none of the media can be read"
        return
    uncertain = [stage for stage, choice in plan.stage_plans.items() if not choice.fits]
    largest = max((c.chosen for c in plan.stage_plans.values()), key=lambda e: e.peak_bytes)
    peak = (
        f"{largest.rung.stage} takes most, {gib(largest.peak_bytes)} of "
        f"{gib(plan.budget.bytes)} allowed"
    )
    if uncertain:
        yield f"may not fit: the largest chunks in {' and '.join(uncertain)}; {peak}"
        return
    reduced = [
        choice
        for choice in plan.stage_plans.values()
        if choice.chosen.rung != choice.requested.rung
    ]
    how = "".join(f"; {c.chosen.rung.stage} with {c.chosen.rung.name}" for c in reduced)
    yield f"fits: {peak}{how}"


def memory_lines(plan: Plan) -> Iterator[str]:
    """Yield the memory by stage, in GiB."""
    if not plan.stage_plans:
        return
    yield "memory, GiB"
    budget = plan.budget
    rows = [_row(stage, choice.chosen) for stage, choice in plan.stage_plans.items()]
    is_small = budget.bytes < GIB / 10
    given = gib(budget.bytes) if is_small else f"{budget.bytes / GIB:.2f}"
    rows.append(("allowed", *[""] * len(ON_DEVICE), given, ""))
    yield from table_lines(COLUMNS, rows, right=COLUMNS[1:-1], indent=2)
    yield f"limit       {_limit_why(plan)}"
    if shares := plan.together:
        parts = " and ".join(f"{stage} in {gib(size)}" for stage, size in shares.items())
        yield f"together    {parts}, at the same time"
    if budget.device != "cpu":
        largest = max(plan.stage_plans.values(), key=lambda choice: choice.chosen.host_bytes).chosen
        yield (
            f"host        {gib(largest.host_bytes)} at most, by {largest.rung.stage}; "
            f"{gib(budget.host_bytes)} free"
        )
    if len(plan.devices) > 1:
        rungs = [choice.chosen.rung for choice in plan.stage_plans.values()]
        counts = ", ".join(f"{rung.stage} on {plan.capacity.processes(rung)}" for rung in rungs)
        yield f"gpus        {counts}: they make a run faster, not a model smaller"
        if note := plan.capacity.processes_note(rungs):
            yield f"note        {note}"
    if budget.warning:
        yield f"note        {budget.warning}"


def _row(stage: str, estimate: StageEstimate) -> tuple[str, ...]:
    parts = map(estimate.bytes_of, ON_DEVICE)
    cells = (f"{part / GIB:.2f}" if part else "-" for part in parts)
    about = " (by dimensions)" if estimate.by_dimensions else ""
    return (stage, *cells, f"{estimate.peak_bytes / GIB:.2f}", f"{estimate.rung.name}{about}")


def explain_lines(plan: Plan) -> Iterator[str]:
    """Yield the arithmetic, term by term."""
    for stage, choice in plan.stage_plans.items():
        estimate = choice.chosen
        yield f"{stage}, {estimate.rung.name}"
        yield f"  for {estimate.workload.line()}; {estimate.workload.chunks} in all"
        for term in estimate.terms:
            yield f"  {term.part:11s}{gib(term.bytes):>11s}  {term.why}"
        limit = allowed(estimate, plan.budget)
        yield f"  {'peak':11s}{gib(estimate.peak_bytes):>11s}  without host; {gib(limit)} allowed"


def what_fits_lines(plan: Plan) -> Iterator[str]:
    """Yield which budgets fit in which precision, on this device and, on a CPU, also for a GPU."""
    devices = [plan.request.device] + (["cuda:0"] if plan.request.device == "cpu" else [])
    for device in devices:
        where = "this machine's CPU" if device == "cpu" else "a GPU"
        yield f"what fits   batch size by GiB of {where}"
        yield _cells("", [str(size) for size in BUDGETS_GIB])
        rows = what_fits(plan.request, device)
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


def _of_media(plan: Plan, values: dict[str, Any]) -> Iterator[str]:
    if values["fetch_bytes"]:
        yield f"download    {gib(values['fetch_bytes'])} of weights"
    shots = f", if shots take {SHOT_SECONDS:.0f} s" if values["sampling"]["shots"] else ""
    yield (
        f"media       {counted(values['files'] - values['unreadable'], 'file')}, "
        f"{duration(values['seconds_of_media'])}, about {counted(values['chunks'], 'chunk')} and "
        f"{counted(values['frames'], 'frame')}{shots}"
    )
    if plan.unusable:
        groups: dict[str, list[str]] = {}
        for failure in plan.unusable:
            why = UNUSABLE.get(failure.error, "cannot be opened")
            groups.setdefault(why, []).append(failure.media_path)
        parts = (f"{counted(len(g), 'file')} {why}: {first_of(g)}" for why, g in groups.items())
        yield f"left out    {'; '.join(parts)}"
    yield (
        f"disk        {gib(values['frame_bytes_at_once'])} of frames at once, "
        f"{gib(values['feature_bytes'])} of {next(iter(values['done']))} kept, "
        f"{gib(values['free_bytes'])} free, "
        f"{values['in_waves'] or counted(values['waves'], 'wave')}"
    )
    if values["max_store"]:
        yield f"store       {values['max_store']}"
    if values["clip_bytes"]:
        yield f"clips       at most about {gib(values['clip_bytes'])} in OUT"
    done = ", ".join(
        counted(n, kind[:-1]) if kind.endswith("s") else f"{n:,} {kind}"
        for kind, n in values["done"].items()
    )
    # Cache keys contain the digest of the weights.
    done = done if values["weights_read"] else "unknown until a run reads the weights"
    yield f"done        {done}"
    if values["time"]:
        yield f"time        {values['time']}"


def _limit_why(plan: Plan) -> str:
    budget = plan.budget
    if budget.given:
        on_cpu = budget.device == "cpu" and not plan.request.model.served
        fits = f"--what-fits plans GPUs of {BUDGETS_GIB[0]} to {BUDGETS_GIB[-1]} GiB"
        return f"set by --memory; this plans the CPU: {fits}" if on_cpu else "set by --memory"
    another = "" if plan.request.model.served else "; --memory sets another"
    return f"free memory: {gib(budget.free_bytes)} on {budget.device}{another}"


def _costs(plan: Plan) -> Iterator[str]:
    """Yield why a stage does not run as requested, and what that costs."""
    for stage, choice in plan.stage_plans.items():
        if choice.chosen.rung != choice.requested.rung and not choice.refused:
            first = choice.requested
            why = f"would take {gib(first.peak_bytes)}"
            if choice.remembered:
                why = f"did not fit in an earlier run ({gib(first.peak_bytes)} expected)"
            yield f"  {stage}: {first.rung.name} {why}; {'; '.join(_differs(choice))}"


def _differs(choice: StagePlan) -> Iterator[str]:
    first, chosen = choice.requested.rung, choice.chosen.rung
    if chosen.precision != first.precision:
        yield COSTS["precision"]
    elif chosen.block:
        yield COSTS["block"]
    elif chosen.offload:
        yield COSTS["offload"]
    elif chosen.packed:
        yield COSTS["packed"]
    elif chosen.context != first.context:
        yield COSTS["context"]
    elif chosen.kv != first.kv:
        yield COSTS[chosen.kv]
    elif chosen.prefill != first.prefill:
        yield COSTS["prefill"]
    else:
        yield COSTS["batch" if STAGES[chosen.stage].reads else "files"]
