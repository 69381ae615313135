"""Estimates the cost of writing and evaluating a quantized checkpoint."""

import math
from collections.abc import Sequence
from dataclasses import replace

from artifacts.words import counted
from flows.checkpoint.models import Model
from flows.options.commands import RunOptions
from flows.options.export_config import SAMPLES
from flows.planning.costs import decode
from flows.planning.estimate import StageEstimate, Term
from flows.planning.rungs import Rung
from flows.planning.seconds import WorkEstimate
from flows.planning.todo import RemainingWork
from flows.planning.workloads import Workload
from stages.models.shards import SHARD_BYTES

WRITING_BYTES = 300 << 20
"""Bytes that writing takes beside a file and the tensor in hand."""
HESSIAN_BYTES = 4 << 30
"""Most bytes of what is summed up for the weights of one layer: those that would take more are
rounded without."""
GRAPH_COPIES, TRACING_BYTES = 3, 600 << 20
"""Copies of a half that making graphs takes, and bytes of what is noted on the way."""
CALIBRATING = SAMPLES // 2
"""Chunks that weights are calibrated on, by default: the others judge."""
INVERTING = 2.4
"""Copies of it that inverting one takes."""
ROUNDED_BYTES = 80 << 20
"""Bytes of the rows that are rounded at once."""
COMPARED_BYTES = 256 * 4 * 8
"""Bytes that one chunk takes of each number of a feature's width: 256 rows, four times, in 64
bit."""


def rungs(model: Model, config: RunOptions, device: str, stage: str = "export") -> list[Rung]:
    """Return the only one there is."""
    return [Rung(stage=stage, batch=1)]


def memory(model: Model, rung: Rung, workload: Workload, *, device: str, new: int) -> StageEstimate:
    """Add up a file of weights and the tensor that is read, whatever the model."""
    held = sum(part.stored_bytes for part in model.profile.parts.values()) or SHARD_BYTES
    why = "a file of weights, the tensor in hand, and what is said of all"
    term = Term(part="weight", bytes=min(SHARD_BYTES, held) + WRITING_BYTES, why=why)
    return StageEstimate.of(rung, [term], device="cpu", workload=workload)


def memory_of_tracing(
    model: Model, rung: Rung, workload: Workload, *, device: str, new: int
) -> StageEstimate:
    """Count the half that has the most numbers, as it is traced, as a graph, and as it is
    loaded."""
    profile = model.profile
    parts = profile.parts.values() if profile.route == "dual" else [profile.vision]
    most = max(part.parameters for part in parts)
    why = f"{most / 1e6:,.0f} M numbers in 32 bit, {GRAPH_COPIES} times: to be traced, as a graph, "
    terms = [Term(part="weight", bytes=GRAPH_COPIES * 4 * most, why=f"{why}and to be tried")]
    terms.append(Term(part="workspace", bytes=TRACING_BYTES, why="what is noted of each operation"))
    return StageEstimate.of(rung, terms, device="cpu", workload=workload)


def memory_of_comparing(
    model: Model, rung: Rung, workload: Workload, *, device: str, new: int
) -> StageEstimate:
    """Count the rows that are compared."""
    rows = workload.chunks * COMPARED_BYTES * model.profile.feature_width
    term = Term(part="activation", bytes=rows + WRITING_BYTES, why="features of all chunks, twice")
    return StageEstimate.of(rung, [term], device="cpu", workload=workload)


def rungs_of_judging(
    model: Model, config: RunOptions, device: str, stage: str = "judge"
) -> list[Rung]:
    """Return the ways to read a prompt alone in the best precision: with all layers there, or as
    they come one by one, which changes nothing."""
    whole = Rung(stage=stage, batch=1, precision=model.best("language").precision)
    in_few_bits = model.profile.language.stored_as or model.profile.route == "joint"
    return [whole] if in_few_bits else [whole, replace(whole, offload=True)]


def memory_of_judging(
    model: Model, rung: Rung, workload: Workload, *, device: str, new: int
) -> StageEstimate:
    """Return what it takes to read a prompt with its caption, as captioning does."""
    return decode.memory(model, rung, replace(workload, chunks=1), device=device, new=new)


def memory_of_calibrating(
    model: Model, rung: Rung, workload: Workload, *, device: str, new: int
) -> StageEstimate:
    """Add what is summed up for one layer, of which one is inverted at a time."""
    found, half = memory_of_judging(model, rung, workload, device=device, new=new), model.profile
    wide = half.language.widest_linear
    narrow = half.language.largest_linear // max(1, wide)
    summed = 4 * (3 * narrow**2 + wide**2)
    rows = CALIBRATING * (workload.tokens + new) * half.feature_width * 4
    held = min(HESSIAN_BYTES, summed) + math.ceil(INVERTING * 4 * wide**2) + ROUNDED_BYTES
    why = f"sums of {wide:,} and {narrow:,} squared numbers for one layer, and one inverted"
    terms = [*found.terms, Term(part="workspace", bytes=held, why=why)]
    chunks = counted(CALIBRATING, "chunk")
    why = f"{chunks} that cross the layers together x {workload.tokens + new:,}"
    terms.append(Term(part="activation", bytes=rows, why=f"{why} x {half.feature_width:,} x 4"))
    return StageEstimate.of(rung, terms, device=device, workload=workload)


def work_left(model: Model, rung: Rung, left: Sequence[RemainingWork], new: int) -> WorkEstimate:
    """Count nothing: how long it takes is not known."""
    return WorkEstimate(processes=1)
