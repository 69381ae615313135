"""Estimates the cost of summarizing captions."""

import math
from collections.abc import Sequence
from dataclasses import replace

from artifacts.words import counted
from flows.checkpoint.models import Model
from flows.options.commands import RunOptions
from flows.planning.costs import decode
from flows.planning.costs.part import free_settings, loading, precision_of
from flows.planning.estimate import StageEstimate, Term
from flows.planning.rungs import Rung
from flows.planning.seconds import Pass, WorkEstimate
from flows.planning.todo import RemainingWork
from flows.planning.workloads import Workload
from stages.summarize.job import ANSWERS, ASSUMED_CONTEXT, LARGEST_CONTEXT, MAX_TEXTS, STEP

LEAST_CONTEXT = 512
"""Tokens of a context below which captions are not worth reading together."""
KERNEL_BYTES = 1 << 20
"""Bytes of the kernels that oneDNN makes for prompts of one length and keeps: 13 MB for 13 lengths
were measured with the demo model."""


def rungs(model: Model, config: RunOptions, device: str) -> list[Rung]:
    """Return shorter contexts, in each precision that the half may be had in."""
    most = min(model.profile.context_tokens or ASSUMED_CONTEXT, LARGEST_CONTEXT)
    contexts = [most]
    while contexts[-1] // 2 >= LEAST_CONTEXT:
        contexts.append(contexts[-1] // 2)
    return [
        Rung(stage="summarize", batch=1, precision=settings.precision, context=context)
        for settings in free_settings(model, config, "language")
        if not settings.kv
        for context in contexts
    ]


def memory(model: Model, rung: Rung, workload: Workload, *, device: str, new: int) -> StageEstimate:
    """Add up weights, and what reading texts and answering takes, one at a time."""
    found = decode.memory(model, rung, _asked(rung, workload, new), device=device, new=new)
    if device != "cpu":
        return found
    lengths = min(math.ceil(rung.context / STEP), nodes_of(workload.chunks))
    why = f"kernels of the CPU for prompts of {counted(lengths, 'length')} x {KERNEL_BYTES:,} bytes"
    kernels = Term(part="workspace", bytes=lengths * KERNEL_BYTES, why=why)
    return StageEstimate.of(
        rung,
        [*found.terms, kernels],
        device=device,
        workload=workload,
        flops=found.flops,
        by_dimensions=found.by_dimensions,
    )


def work_left(model: Model, rung: Rung, left: Sequence[RemainingWork], new: int) -> WorkEstimate:
    """Count the loading of the half, and for each text that is made a pass over those that it is
    of, and one a token."""
    half, settings = model.profile.language, model.best("language")
    videos = [each.workload for each in left if each.workload.kind == "video"]
    nodes = sum(nodes_of(each.chunks) for each in videos)
    run = Pass(
        precision=precision_of(settings, rung),
        flops=2.0 * half.parameters * rung.context,
        tokens=rung.context,
        calls=half.linear_modules,
        times=nodes,
    )
    step = replace(
        run,
        flops=2.0 * half.parameters,
        tokens=1,
        calls=run.calls + decode.STEP_CALLS,
        times=nodes * new,
    )
    return loading(half, settings, rung, bool(nodes), [run, step])


def nodes_of(chunks: int) -> int:
    """Return how many texts are made of so many captions at the least."""
    above = math.ceil(chunks / MAX_TEXTS)
    return above + (nodes_of(above) if above > 1 else 0)


def _asked(rung: Rung, workload: Workload, new: int) -> Workload:
    tokens = rung.context - min(new, rung.context // ANSWERS)
    return replace(workload, chunks=1, tokens=tokens, text_tokens=tokens, feature_bytes=0)
