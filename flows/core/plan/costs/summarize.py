"""Estimates the cost of summarizing captions."""

import math
from dataclasses import replace

from artifacts.wording import counted
from flows.core.checkpoint.models import Model
from flows.core.options.commands import RunOptions
from flows.core.plan.costs import decode
from flows.core.plan.half import free_settings
from flows.core.plan.ladder import Rung
from flows.core.plan.stage_estimate import Conditions, Cost, Reason, StageEstimate, Term
from flows.core.plan.workloads import Workload
from stages.summarize import ANSWERS, ASSUMED_CONTEXT, LARGEST_CONTEXT, MAX_TEXTS, STEP

MIN_CONTEXT = 512
"""Minimum context in tokens: with less, combining captions is not worthwhile."""
KERNEL_BYTES = 1 << 20
"""Bytes of the kernels that oneDNN compiles and keeps per prompt length: 13 MB for 13 lengths were
measured with the demo model."""


def rungs(model: Model, config: RunOptions, device: str, stage: str) -> list[Rung]:
    """Return shorter contexts, in each precision that the half supports."""
    longest = min(model.profile.context_tokens or ASSUMED_CONTEXT, LARGEST_CONTEXT)
    contexts = [longest]
    while contexts[-1] // 2 >= MIN_CONTEXT:
        contexts.append(contexts[-1] // 2)
    return [
        Rung(stage=stage, batch=1, precision=settings.precision, context=context)
        for settings in free_settings(model, config, "language")
        if not settings.kv
        for context in contexts
    ]


def memory(model: Model, rung: Rung, workload: Workload, conditions: Conditions) -> StageEstimate:
    """Add up weights, and the memory of one prompt and answer at a time."""
    tokens = rung.context - min(conditions.new_tokens, rung.context // ANSWERS)
    reading = replace(workload, chunks=1, tokens=tokens, text_tokens=tokens, feature_bytes=0)
    decoding = decode.memory(model, rung, reading, conditions)
    if conditions.device != "cpu":
        return decoding
    lengths = min(math.ceil(rung.context / STEP), nodes_of(workload.chunks))
    numbers = {"lengths": counted(lengths, "length"), "each": KERNEL_BYTES}
    kernels = Term.of("workspace", lengths * KERNEL_BYTES, Reason.KERNELS, **numbers)
    return replace(decoding.plus(kernels), workload=workload)


def nodes_of(chunks: int) -> int:
    """Return the minimum number of summary nodes for this number of chunks."""
    above = math.ceil(chunks / MAX_TEXTS)
    return above + (nodes_of(above) if above > 1 else 0)


COST = Cost(rungs=rungs, memory=memory)
