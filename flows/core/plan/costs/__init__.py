"""The cost of each stage: the rungs that it may take, and its memory on one of them. The costs of a
command's own stages are in its folder."""

from collections.abc import Mapping, Sequence
from pkgutil import resolve_name

from flows.core.checkpoint.models import Model
from flows.core.commands import declarations
from flows.core.plan.costs import ask, decode, embed_texts, encode, frames, hear, summarize, tag
from flows.core.plan.ladder import Rung
from flows.core.plan.stage_estimate import Conditions, Cost, StageEstimate
from flows.core.plan.workloads import Workload

COSTS: Mapping[str, Cost] = {
    "ask": ask.COST,
    "frames": frames.COST,
    "encode": encode.COST,
    "sound": hear.SOUND_COST,
    "hear": hear.COST,
    "embed": encode.EMBED_COST,
    "decode": decode.COST,
    "embed_texts": embed_texts.COST,
    "summarize": summarize.COST,
    "tag": tag.COST,
}
"""Stage that several commands run → its cost."""


def cost_of(stage: str) -> Cost:
    """Return the cost functions of a stage. Imports those of a command only for its own stages."""
    if stage in COSTS:
        return COSTS[stage]
    own = (d for d in declarations() if any(s.name == stage for p in d.pipelines for s in p))
    cost: Cost = resolve_name(next(own).costs)[stage]
    return cost


def estimate(
    model: Model, rung: Rung, workloads: Sequence[Workload], conditions: Conditions
) -> StageEstimate:
    """Return the estimate of a stage on a rung for the workload with the highest peak."""
    memory = cost_of(rung.stage).memory
    estimates = (memory(model, rung, workload, conditions) for workload in workloads)
    return max(estimates, key=lambda estimate: estimate.peak_bytes)
