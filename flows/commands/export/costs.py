"""Estimates the cost of writing and evaluating a quantized checkpoint."""

import math
from dataclasses import replace
from enum import StrEnum

from artifacts.wording import counted
from flows.commands.export.options import SAMPLES
from flows.core.checkpoint.models import Model
from flows.core.options.commands import RunOptions
from flows.core.plan.costs import decode
from flows.core.plan.ladder import Rung
from flows.core.plan.stage_estimate import Conditions, Cost, StageEstimate, Term
from flows.core.plan.workloads import Workload
from stages.models.shards import SHARD_BYTES

WRITING_BYTES = 300 << 20
"""Bytes that writing takes besides a weight file and the current tensor."""
HESSIAN_BYTES = 4 << 30
"""Maximum bytes of the Hessians of one layer; weights that would need more are rounded without."""
GRAPH_COPIES, TRACING_BYTES = 3, 600 << 20
"""Copies of a half that graph export holds, and bytes of the traced operations."""
CALIBRATING = SAMPLES // 2
"""Chunks used for calibration by default; the others are used for evaluation."""
INVERTING = 2.4
"""Copies of a Hessian that inverting it takes."""
ROUNDED_BYTES = 80 << 20
"""Bytes of the weight rows that are rounded at once."""
COMPARED_BYTES = 256 * 4 * 8
"""Bytes per chunk and feature dimension: 256 rows, four copies, 64 bit."""


class ExportReason(StrEnum):
    """What an export takes memory for."""

    FILE = "a weight file, the current tensor, and the headers"
    HALF = "{millions:,.0f} M numbers in 32 bit x {copies}: traced, as a graph, checked"
    OPERATIONS = "traced operations"
    FEATURES = "features of all chunks, twice"
    HESSIANS = "Hessians of {wide:,} and {narrow:,} squared numbers for one layer, and one inverse"
    CALIBRATION = "{chunks} that pass the layers together x {tokens:,} x {width:,} x 4"


def rungs(model: Model, config: RunOptions, device: str, stage: str) -> list[Rung]:
    return [Rung(stage=stage, batch=1)]


def memory(model: Model, rung: Rung, workload: Workload, conditions: Conditions) -> StageEstimate:
    """Add up one weight file and the current tensor."""
    held = sum(part.stored_bytes for part in model.profile.parts.values()) or SHARD_BYTES
    term = Term.of("weight", min(SHARD_BYTES, held) + WRITING_BYTES, ExportReason.FILE)
    return StageEstimate(rung=rung, terms=(term,), device="cpu", workload=workload)


def memory_of_tracing(
    model: Model, rung: Rung, workload: Workload, conditions: Conditions
) -> StageEstimate:
    """Count three copies of the largest half: traced, as a graph, and loaded for the check."""
    profile = model.profile
    parts = profile.parts.values() if profile.route == "dual" else [profile.vision]
    largest = max(part.parameters for part in parts)
    numbers = {"millions": largest / 1e6, "copies": GRAPH_COPIES}
    terms = (
        Term.of("weight", GRAPH_COPIES * 4 * largest, ExportReason.HALF, **numbers),
        Term.of("workspace", TRACING_BYTES, ExportReason.OPERATIONS),
    )
    return StageEstimate(rung=rung, terms=terms, device="cpu", workload=workload)


def memory_of_comparing(
    model: Model, rung: Rung, workload: Workload, conditions: Conditions
) -> StageEstimate:
    """Count the feature rows that are compared."""
    rows = workload.chunks * COMPARED_BYTES * model.profile.feature_width
    term = Term.of("activation", rows + WRITING_BYTES, ExportReason.FEATURES)
    return StageEstimate(rung=rung, terms=(term,), device="cpu", workload=workload)


def rungs_of_judging(model: Model, config: RunOptions, device: str, stage: str) -> list[Rung]:
    """Return the rungs for one prompt in the best precision: all layers loaded, or loaded one by
    one, which does not change results."""
    rung = Rung(stage=stage, batch=1, precision=model.best("language").precision)
    in_few_bits = model.profile.language.stored_as or model.profile.route == "joint"
    resident = in_few_bits or config.groups.adapter.adapter  # PEFT replaces layers
    return [rung] if resident else [rung, replace(rung, offload=True)]


def memory_of_judging(
    model: Model, rung: Rung, workload: Workload, conditions: Conditions
) -> StageEstimate:
    """Return the memory of one prompt with its caption, as in captioning."""
    return decode.memory(model, rung, replace(workload, chunks=1), conditions)


def memory_of_calibrating(
    model: Model, rung: Rung, workload: Workload, conditions: Conditions
) -> StageEstimate:
    """Add the Hessians of one layer. The calibration inverts one Hessian at a time."""
    tokens = workload.tokens + conditions.new_tokens
    judging, half = memory_of_judging(model, rung, workload, conditions), model.profile
    wide = half.language.widest_linear
    narrow = half.language.largest_linear // max(1, wide)
    summed = 4 * (3 * narrow**2 + wide**2)
    rows = CALIBRATING * tokens * half.feature_width * 4
    held = min(HESSIAN_BYTES, summed) + math.ceil(INVERTING * 4 * wide**2) + ROUNDED_BYTES
    chunks = {
        "chunks": counted(CALIBRATING, "chunk"),
        "tokens": tokens,
        "width": half.feature_width,
    }
    terms = (
        *judging.terms,
        Term.of("workspace", held, ExportReason.HESSIANS, wide=wide, narrow=narrow),
        Term.of("activation", rows, ExportReason.CALIBRATION, **chunks),
    )
    return StageEstimate(rung=rung, terms=terms, device=conditions.device, workload=workload)


COSTS = {
    "export": Cost(rungs=rungs, memory=memory),
    "trace": Cost(rungs=rungs, memory=memory_of_tracing),
    "compare": Cost(rungs=rungs, memory=memory_of_comparing),
    "judge": Cost(rungs=rungs_of_judging, memory=memory_of_judging),
    "calibrate": Cost(rungs=rungs_of_judging, memory=memory_of_calibrating),
}
