"""The cost models of the stages: rungs and memory of each. Those of a command's own stages are in
its folder."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pkgutil import resolve_name

from flows.core.checkpoint.models import Model
from flows.core.commands import declarations
from flows.core.options.commands import RunOptions
from flows.core.pipelines import Pipeline
from flows.core.plan.costs import (
    ask,
    decode,
    decode_rungs,
    embed_texts,
    encode,
    encode_rungs,
    frames,
    hear,
    summarize,
)
from flows.core.plan.costs.cost import Cost
from flows.core.plan.ladder import Rung
from flows.core.plan.stage_estimate import Conditions, StageEstimate, Term
from flows.core.plan.workloads import Workload
from stages.process.device_limit import CONTEXT_BYTES

COSTS: Mapping[str, Cost] = {
    "ask": Cost(rungs=ask.rungs, memory=ask.memory),
    "frames": Cost(rungs=frames.rungs, memory=frames.memory),
    "encode": Cost(rungs=encode_rungs.rungs, memory=encode.memory),
    "sound": Cost(rungs=frames.rungs, memory=hear.memory_of_reading),
    "hear": Cost(rungs=hear.rungs, memory=hear.memory),
    "embed": Cost(rungs=encode_rungs.rungs, memory=encode.memory_of_embedding),
    "decode": Cost(rungs=decode_rungs.rungs, memory=decode.memory_of_captions),
    "embed_texts": Cost(rungs=embed_texts.rungs, memory=embed_texts.memory),
    "summarize": Cost(rungs=summarize.rungs, memory=summarize.memory),
}
"""Stage that several commands run → its cost."""


def cost_of(stage: str) -> Cost:
    """Return the cost functions of a stage. Imports those of a command only for its own stages."""
    if stage in COSTS:
        return COSTS[stage]
    own = (d for d in declarations() if any(s.name == stage for p in d.pipelines for s in p))
    cost: Cost = resolve_name(next(own).costs)[stage]
    return cost


def rungs_of(
    stages: Pipeline, model: Model, config: RunOptions, device: str
) -> dict[str, list[Rung]]:
    """Return stage name → rungs that the command allows, cheapest first."""
    return {
        stage.name: cost_of(stage.name).rungs(model, config, device, stage.name) for stage in stages
    }


def estimate(
    model: Model, rung: Rung, workloads: Sequence[Workload], conditions: Conditions
) -> StageEstimate:
    """Return the estimate of a stage on a rung for the workload with the highest peak."""
    memory, size = cost_of(rung.stage).memory, conditions.context_bytes
    estimates = (memory(model, rung, workload, conditions) for workload in workloads)
    highest = max(estimates, key=lambda estimate: estimate.peak_bytes)
    if size == CONTEXT_BYTES:
        return highest
    here = Term(part="context", bytes=size, why="the driver, measured on this machine")
    return replace(
        highest, terms=tuple(here if term.part == "context" else term for term in highest.terms)
    )
