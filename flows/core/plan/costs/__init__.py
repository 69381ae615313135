"""The cost models of the stages: three functions per stage."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from flows.commands.export import costs as export
from flows.commands.tune import costs as tune
from flows.core.checkpoint.models import Model
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
from flows.core.plan.ladder import Rung
from flows.core.plan.stage_estimate import StageEstimate, Term
from flows.core.plan.workloads import Workload
from stages.process.device_limit import CONTEXT_BYTES


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """The cost functions of a stage."""

    rungs: Callable[[Model, RunOptions, str, str], list[Rung]]
    """Model, command, device and stage → rungs, cheapest first."""
    memory: Callable[..., StageEstimate]
    """Model, rung and workload → memory estimate."""


COSTS: Mapping[str, Cost] = {
    "ask": Cost(rungs=ask.rungs, memory=ask.memory),
    "frames": Cost(rungs=frames.rungs, memory=frames.memory),
    "encode": Cost(rungs=encode_rungs.rungs, memory=encode.memory),
    "sound": Cost(rungs=frames.rungs, memory=hear.memory_of_reading),
    "hear": Cost(rungs=hear.rungs, memory=hear.memory),
    "embed": Cost(rungs=encode_rungs.rungs, memory=encode.memory_of_embedding),
    "decode": Cost(rungs=decode_rungs.rungs, memory=decode.memory),
    "embed_texts": Cost(rungs=embed_texts.rungs, memory=embed_texts.memory),
    "summarize": Cost(rungs=summarize.rungs, memory=summarize.memory),
    "tune": Cost(rungs=tune.rungs, memory=tune.memory),
    "export": Cost(rungs=export.rungs, memory=export.memory),
    "trace": Cost(rungs=export.rungs, memory=export.memory_of_tracing),
    "compare": Cost(rungs=export.rungs, memory=export.memory_of_comparing),
    "judge": Cost(rungs=export.rungs_of_judging, memory=export.memory_of_judging),
    "calibrate": Cost(rungs=export.rungs_of_judging, memory=export.memory_of_calibrating),
}
"""Stage name → cost functions."""


def rungs_of(
    stages: Pipeline, model: Model, config: RunOptions, device: str
) -> dict[str, list[Rung]]:
    """Return stage name → rungs that the command allows, cheapest first."""
    return {
        stage.name: COSTS[stage.name].rungs(model, config, device, stage.name) for stage in stages
    }


def estimate(
    model: Model,
    rung: Rung,
    workloads: Sequence[Workload],
    device: str,
    max_new_tokens: int,
    context_bytes: int = CONTEXT_BYTES,
    schema: str = "",
    readers: int = 1,
    selection: Collection[str] = (),
) -> StageEstimate:
    """Return the estimate of a stage on a rung for the workload with the highest peak. A `schema`
    adds the memory of its grammar to decode, `selection` that of selecting tokens with these
    settings, and further `readers` that of what they prepare to a stage that encodes frames."""
    calculate = partial(COSTS[rung.stage].memory, model, rung, device=device, new=max_new_tokens)
    if COSTS[rung.stage].rungs is encode_rungs.rungs:
        calculate = partial(calculate, readers=readers)
    if rung.stage == "decode":
        calculate = partial(calculate, selection=selection)
    found = max((calculate(each) for each in workloads), key=lambda found: found.peak_bytes)
    if schema and rung.stage == "decode":
        found = found.plus(decode.structure_term(model, device))
    if context_bytes == CONTEXT_BYTES:
        return found
    here = Term(part="context", bytes=context_bytes, why="the driver, measured on this machine")
    return replace(found, terms=tuple(here if t.part == "context" else t for t in found.terms))
