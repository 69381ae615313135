"""Shows a plan: as JSON, and as text with the result first, then memory by stage."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from artifacts.disk.json_records import json_of
from artifacts.records.eight_bits import INT8_64
from artifacts.schema import Part
from artifacts.wording import counted, first_of
from flows.core.checkpoint.models import Model
from flows.core.checkpoint.precision import weight_bytes
from flows.core.checkpoint.weights import bytes_to_fetch
from flows.core.console.lines import duration, gib, table_lines
from flows.core.job.plan_record import HalfRecord
from flows.core.job.prepare import Job
from flows.core.job.summary import halves, notes
from flows.core.ledger.ledger import stages_with_work
from flows.core.ledger.tasks import keys_of
from flows.core.machine.budget import Budget
from flows.core.pipelines import STAGES, parts_of
from flows.core.plan.choose import allowed, memory_plan
from flows.core.plan.context_check import context_notes
from flows.core.plan.ladder import Rung
from flows.core.plan.plan import Plan
from flows.core.plan.sizes import CLIP_BYTES, SHOT_SECONDS, clip_pixels
from flows.core.plan.stage_estimate import ON_DEVICE, StageEstimate
from flows.core.plan.store_limit import planned_waves
from flows.core.plan.what_fits import BUDGETS_GIB
from stages import tune

GIB = 1 << 30
COLUMNS = ("", "weights", "computing", "KV cache", "workspace", "context", "peak", "rung")
KV_COSTS = {
    "offloaded": "a KV cache in host memory is copied for each token: 2 to 5 times longer",
    "quantized": "a quantized KV cache changes some words",
}
"""Place of a KV cache → its cost."""
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


def figures(plan: Plan) -> dict[str, Any]:
    model, request = plan.request.model, plan.request
    refusal = plan.refusal
    report: dict[str, Any] = {
        "model": model.name,
        "device": request.device,
        "gpus": {s: plan.capacity.processes(c.chosen.rung) for s, c in plan.stage_plans.items()}
        if len(plan.devices) > 1
        else {},
        "precision": model.precision(),
        "commit": model.checkpoint.commit,
        "halves": {
            part: {name: fact for name, fact in json_of(half).items() if fact is not None}
            for part, half in halves(model).items()
        },
        "route": model.profile.route,
        "fits": refusal is None,
        "refusal": None if refusal is None else {"message": refusal.message, "hint": refusal.hint},
        "memory": {
            **json_of(memory_plan(plan.stage_plans, plan.budget)),
            "together": dict(plan.together),
            "budget": asdict(plan.budget),
            "arithmetic": {
                stage: [asdict(term) for term in choice.chosen.terms]
                for stage, choice in plan.stage_plans.items()
            },
        },
    }
    return {**report, **(_job_figures(plan, plan.job) if plan.job else {"notes": list(plan.notes)})}


def _job_figures(plan: Plan, job: Job) -> dict[str, Any]:
    expected = plan.expected
    tasks = job.ledger.tasks(job.media)
    waves, line = planned_waves(job, expected, plan.limit)
    frames = {
        (m.digest, m.prompt): e.frame_bytes
        for m, e in zip(job.media, expected, strict=True)
        if job.ledger.frames_to_cut(m) != []
    }
    of_frames = [sum(frames.get((m.digest, m.prompt), 0) for m in wave) for wave in waves]
    (seconds, time), clips = plan.times, clip_pixels(job, expected)
    return {
        "notes": [
            *(*notes(job), *context_notes(job, expected)),
            *(plan.limit.notes() if plan.limit else []),
        ],
        "seconds": seconds,
        "time": time,
        "fetch_bytes": bytes_to_fetch(job.model, parts_of(stages_with_work(job.ledger, job.media))),
        "sampling": job.sampling.settings,
        "files": len(job.by_file),
        "failed": len(job.failures),
        "unreadable": len(plan.unusable),
        "seconds_of_media": sum(e.seconds for e in expected),
        "chunks": sum(e.chunks for e in expected if not e.reuses_features),
        "frames": sum(e.frames for e in expected),
        "frame_bytes_at_once": max(of_frames, default=0),
        "feature_bytes": (feature_bytes := sum(e.feature_bytes for e in expected)),
        "packed_feature_bytes": _packed(job.model, feature_bytes),
        "waves": len(waves),
        "in_waves": line,
        "max_store": plan.limit.line(waves) if plan.limit else "",
        "free_bytes": job.store.free_bytes(),
        "clip_bytes": round(clips * CLIP_BYTES),
        "weights_read": job.model.read,
        "done": {
            stage.writes: len(keys_of(tasks, stage.writes) & job.ledger[stage.writes].keys())
            for stage in job.pipeline[1:]
        },
    }


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
        yield "nothing to compute: no medium can be read and is long enough"
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
    reduced = [c for c in plan.stage_plans.values() if c.chosen.rung != c.requested.rung]
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
    budget_text = gib(budget.bytes) if is_small else f"{budget.bytes / GIB:.2f}"
    rows.append(("allowed", *[""] * len(ON_DEVICE), budget_text, ""))
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
    if packed := values["packed_feature_bytes"]:
        yield f"            --features-as {INT8_64} would keep {gib(packed)} of features"
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


def _packed(model: Model, feature_bytes: int) -> int:
    """Return the bytes that features as computed would take in 8 bits; 0: they cannot, or do."""
    share = model.share_in(INT8_64)
    return round(feature_bytes * share) if share < 1 and not model.features_as else 0


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
            cost = _rung_cost(first.rung, choice.chosen.rung)
            yield f"  {stage}: {first.rung.name} {why}; {cost}"


def _rung_cost(first: Rung, chosen: Rung) -> str:
    """Return what the largest difference of a rung from the requested one costs."""
    if chosen.precision != first.precision:
        return "quantized weights change some words"
    if chosen.block:
        return "reading layers once per block of chunks costs little with many chunks"
    if chosen.offload:
        return "weights outside the device are copied for each token: 20 to 40 times longer"
    if chosen.packed:
        return "layers are unpacked for each token: the same words, slower with few rows"
    if chosen.context != first.context:
        return "shorter contexts make more and shorter chapters"
    if chosen.kv != first.kv:
        return KV_COSTS[chosen.kv]
    if chosen.prefill != first.prefill:
        return "chunked prefill takes a little longer"
    if chosen.recompute != first.recompute:
        return "gradient checkpointing costs a second forward pass of each step"
    if STAGES[chosen.stage].reads or STAGES[chosen.stage].part:
        return "smaller batches take somewhat longer"
    return "fewer files at once take longer"
