"""Prints a plan: the verdict first, then what uses the memory. Computes nothing."""

from collections.abc import Iterator
from typing import Any

from artifacts.words import counted
from flows.console.tables import table_lines
from flows.console.units import duration, gib, size
from flows.job.job_summary import computed_by
from flows.pipelines import STAGES
from flows.planning.choose import StagePlan, allowed
from flows.planning.estimate import StageEstimate
from flows.planning.plan import Plan, figures
from flows.planning.sizes import SHOT_SECONDS
from flows.planning.what_fits import BUDGETS_GIB, LEGEND, what_fits

GIB = 1 << 30
HEADS = ("", "weights", "computing", "KV cache", "workspace", "context", "peak", "rung")
PARTS = ("weight", "activation", "kv", "workspace", "context")
COSTS = {
    "files": "fewer files at once take longer",
    "batch": "smaller batches take somewhat longer",
    "prefill": "reading in pieces takes a little longer",
    "offloaded": "a KV cache in host memory is copied at each token: 2 to 5 times longer",
    "quantized": "a KV cache in few bits changes some words",
    "precision": "weights in fewer bits change some words",
    "context": "shorter contexts make more and shorter chapters",
    "block": "layers read once for a block of chunks cost little where there are many chunks",
    "offload": "weights outside the device are copied at each token: 40 times longer and more",
}
"""A difference of a rung → its cost."""


def plan_lines(plan: Plan) -> list[str]:
    """Return all lines that are said without being asked for more."""
    told = figures(plan)
    lines = [*verdict(plan), f"model       {told['model']} on {told['device']}"]
    lines += [
        f"  {name:10s}{size(half['bytes'])} of weights in {half['precision']}, "
        f"{half['parameters'] / 1e6:.1f} M parameters, {computed_by(half)}"
        for name, half in told["halves"].items()
        if half["parameters"]
    ]
    if plan.job:
        lines += _of_media(told)
    else:
        lines.append(f"assumed     no SOURCES are given: {plan.question.workloads[0].line()}")
    lines += [*memory_lines(plan), *_costs(plan)]
    lines += [f"note        {note}" for note in told["notes"]]
    if plan.job and told["failed"]:
        count = counted(told["failed"], "source")
        lines.append(f"missing     {count}: {plan.job.failures[0].media_path} …")
    return lines


def verdict(plan: Plan) -> Iterator[str]:
    """Say whether it fits, and what to do if not."""
    profile, found = plan.question.model.profile, _fits(plan)
    if profile.by_dimensions:
        yield f"cannot be run: {profile.why}"
        yield f"by its dimensions it {next(found, '')}"
    yield from found


def _fits(plan: Plan) -> Iterator[str]:
    if plan.refusal is not None:
        yield f"does not fit: {plan.refusal.message}"
        yield f"instead     {plan.refusal.hint}"
        return
    if not plan.choices:
        yield "nothing to compute: none of the media can be read"
        return
    doubtful = [stage for stage, choice in plan.choices.items() if not choice.fits]
    most = max((c.taken for c in plan.choices.values()), key=lambda e: e.peak_bytes)
    peak = (
        f"{most.rung.stage} takes most, {gib(most.peak_bytes)} of {gib(plan.budget.bytes)} allowed"
    )
    if doubtful:
        yield f"may not fit: the largest chunks in {' and '.join(doubtful)}; {peak}"
        return
    less = [choice for choice in plan.choices.values() if choice.taken.rung != choice.first.rung]
    how = "".join(f"; {c.taken.rung.stage} with {c.taken.rung.name}" for c in less)
    yield f"fits: {peak}{how}"


def _allowed(count: int) -> str:
    """Return a budget in GiB; one that would round to nothing has its unit."""
    return f"{count / GIB:.2f}" if count >= GIB / 10 else gib(count)


def memory_lines(plan: Plan) -> Iterator[str]:
    """Say where the memory goes, stage by stage, in GiB."""
    if not plan.choices:
        return
    yield "memory, GiB"
    budget = plan.budget
    rows = [_row(stage, choice.taken) for stage, choice in plan.choices.items()]
    rows.append(("allowed", *[""] * len(PARTS), _allowed(budget.bytes), ""))
    yield from table_lines(HEADS, rows, right=HEADS[1:-1], indent=2)
    yield f"limit       {_limit_why(plan)}"
    if budget.device != "cpu":
        most = max(plan.choices.values(), key=lambda choice: choice.taken.host_bytes).taken
        yield (
            f"host        {gib(most.host_bytes)} at most, by {most.rung.stage}; "
            f"{gib(budget.host_bytes)} free"
        )
    if budget.warning:
        yield f"note        {budget.warning}"


def _row(stage: str, found: StageEstimate) -> tuple[str, ...]:
    """Return a stage's row of the table."""
    parts = (getattr(found, f"{part}_bytes") for part in PARTS)
    cells = (f"{part / GIB:.2f}" if part else "-" for part in parts)
    about = " (by dimensions)" if found.by_dimensions else ""
    return (stage, *cells, f"{found.peak_bytes / GIB:.2f}", f"{found.rung.name}{about}")


def explain_lines(plan: Plan) -> Iterator[str]:
    """Say the arithmetic, number by number."""
    for stage, choice in plan.choices.items():
        found = choice.taken
        yield f"{stage}, {found.rung.name}"
        if found.workload is not None:
            yield f"  for {found.workload.line()}; {found.workload.chunks} in all"
        for term in found.terms:
            yield f"  {term.part:11s}{gib(term.bytes):>11s}  {term.why}"
        limit = allowed(found, plan.budget)
        yield f"  {'peak':11s}{gib(found.peak_bytes):>11s}  without host; {gib(limit)} allowed"


def what_fits_lines(plan: Plan) -> Iterator[str]:
    """Say what fits: budgets by precisions, on this device and, where that is none, on a GPU."""
    devices = [plan.question.device] + (["cuda:0"] if plan.question.device == "cpu" else [])
    for device in devices:
        where = "this machine's CPU" if device == "cpu" else "a GPU"
        yield f"what fits   chunks at once in so many GiB of {where}"
        yield _cells("", [str(size) for size in BUDGETS_GIB])
        for name, cells in what_fits(plan.question, device).items():
            yield _cells(name, [cell.text() for cell in cells])
    yield f"  {LEGEND}"


def _cells(name: str, cells: list[str]) -> str:
    return f"  {name:17s}" + "".join(f"{cell:>8s}" for cell in cells)


def _of_media(told: dict[str, Any]) -> Iterator[str]:
    if told["fetch_bytes"]:
        yield f"download    {size(told['fetch_bytes'])} of weights"
    shots = f", if shots take {SHOT_SECONDS:.0f} s" if told["sampling"]["shots"] else ""
    yield (
        f"media       {counted(told['files'], 'file')}, {duration(told['seconds_of_media'])}, "
        f"about {counted(told['chunks'], 'chunk')} and {counted(told['frames'], 'frame')}{shots}"
    )
    yield (
        f"disk        {size(told['frame_bytes_at_once'])} of frames at once, "
        f"{size(told['feature_bytes'])} of {next(iter(told['done']))} kept, "
        f"{size(told['free_bytes'])} free, "
        f"{counted(told['waves'], 'wave')}"
    )
    done = ", ".join(counted(n, kind.removesuffix("s")) for kind, n in told["done"].items())
    # What is made has the digest of the weights in its name.
    yield f"done        {done if told['weights_read'] else 'unknown until a run reads the weights'}"
    if told["time"]:
        yield f"time        {told['time']}"


def _limit_why(plan: Plan) -> str:
    budget = plan.budget
    if budget.given:
        return "set by --memory"
    return f"by what is free: {gib(budget.free_bytes)} on {budget.device}; --memory sets another"


def _costs(plan: Plan) -> Iterator[str]:
    """Say why a stage is not run as it was asked for, and what that costs."""
    for stage, choice in plan.choices.items():
        if choice.taken.rung != choice.first.rung and not choice.refused:
            first = choice.first
            why = f"would take {gib(first.peak_bytes)}"
            if choice.remembered:
                why = f"did not fit in an earlier run ({gib(first.peak_bytes)} are expected)"
            yield f"  {stage}: {first.rung.name} {why}; {'; '.join(_differs(choice))}"


def _differs(choice: StagePlan) -> Iterator[str]:
    first, taken = choice.first.rung, choice.taken.rung
    if taken.precision != first.precision:
        yield COSTS["precision"]
    elif taken.block:
        yield COSTS["block"]
    elif taken.offload:
        yield COSTS["offload"]
    elif taken.context != first.context:
        yield COSTS["context"]
    elif taken.kv != first.kv:
        yield COSTS[taken.kv]
    elif taken.prefill != first.prefill:
        yield COSTS["prefill"]
    else:
        yield COSTS["batch" if STAGES[taken.stage].reads else "files"]
