"""Estimates the cost of answering questions from features."""

from dataclasses import replace

from flows.core.checkpoint.models import Model
from flows.core.options.commands import RunOptions
from flows.core.plan.costs import decode
from flows.core.plan.costs.cost import Cost
from flows.core.plan.costs.part import free_settings, with_packed
from flows.core.plan.ladder import MLP_CHUNKS, Rung
from flows.core.plan.stage_estimate import Conditions, StageEstimate, Term
from flows.core.plan.workloads import Workload

LABEL_TOKENS = 16
"""Assumed tokens of the longest label."""
COPIES = 2
"""KV caches besides that of the prompt: of the prefix, and while a label of several tokens is
read."""


def rungs(model: Model, config: RunOptions, device: str, stage: str) -> list[Rung]:
    """Return the rungs: one probe at a time, then its prompt in pieces, quantized weights, and
    layers loaded one by one."""
    half = model.profile.language
    settings = [s for s in free_settings(model, config, "language") if not s.kv]
    candidates = [
        Rung(stage=stage, batch=1, prefill=tokens, precision=s.precision)
        for s in settings
        for tokens in (0, *MLP_CHUNKS)
    ]
    # PEFT replaces the layers that would be loaded one by one.
    if config.may_fall_back("language") and not (
        half.stored_as or config.groups.adapter.adapter or not settings
    ):
        last, precision = MLP_CHUNKS[-1], settings[0].precision
        candidates.append(
            Rung(stage=stage, batch=1, prefill=last, precision=precision, offload=True)
        )
    return with_packed(half, candidates)


def memory(model: Model, rung: Rung, workload: Workload, conditions: Conditions) -> StageEstimate:
    """Add up weights, and the prefill of one prompt with the copies of its KV cache."""
    alone = replace(workload, chunks=1)
    estimate = decode.memory(model, rung, alone, replace(conditions, new_tokens=LABEL_TOKENS))
    size = COPIES * sum(term.bytes for term in estimate.terms if term.part == "kv")
    why = f"{COPIES} copies of the KV cache, of the prefix and while labels are read"
    whole = estimate.plus(Term(part="kv", bytes=size, why=why))
    return replace(whole, workload=workload, flops=estimate.flops * workload.chunks)


COSTS = {"answer": Cost(rungs=rungs, memory=memory)}
"""Stage → its cost."""
