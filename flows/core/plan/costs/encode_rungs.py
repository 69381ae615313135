"""The rungs of encoding: batches and placements, from fast to small."""

from collections.abc import Sequence
from dataclasses import replace

from flows.core.checkpoint.models import Model
from flows.core.checkpoint.precision import QUANTIZED
from flows.core.options.commands import RunOptions
from flows.core.plan.costs.part import free_settings, with_packed
from flows.core.plan.ladder import MLP_CHUNKS, Rung, sizes
from stages.memory.oom_retry import next_sizes

BLOCK = 256
"""Maximum chunks that pass a streamed half together, if they all fit and have no more images than
allowed by stages/memory/oom_retry.py says."""


def rungs(model: Model, config: RunOptions, device: str, stage: str) -> list[Rung]:
    """Return the rungs: smaller batches, MLP chunks, streamed layers, quantized weights."""
    half, settings = model.profile.vision, free_settings(model, config, "vision")
    # Quantized weights cannot be streamed, a joint model's pixels need none, a graph is one unit.
    whole = model.profile.route != "joint" and not settings[0].graph
    plain = not half.stored_as and settings[0].precision not in QUANTIZED
    candidates = encode_rungs(
        config.batch_size,
        [s.precision for s in settings],
        streamed=whole and plain and half.layers > 1,
        weights=whole,
        stage=stage,
    )
    return with_packed(half, candidates) if whole else candidates


def encode_rungs(
    batch: int,
    precisions: Sequence[str],
    *,
    streamed: bool,
    weights: bool = True,
    stage: str = "encode",
) -> list[Rung]:
    """Return smaller batches, then MLP chunks, then streamed layers; repeat per precision, best
    first. Only the first precision can be `streamed`. Without `weights` (a model that passes pixels
    on unchanged), there are only batches."""
    candidates: list[Rung] = []
    for precision in precisions:
        single = Rung(stage=stage, batch=1, precision=precision)
        candidates += [replace(single, batch=size) for size in sizes(batch)]
        candidates += [replace(single, prefill=tokens) for tokens in MLP_CHUNKS if weights]
        if streamed and precision == precisions[0]:
            candidates += _streamed(batch, single)
    return candidates


def _streamed(batch: int, single: Rung) -> list[Rung]:
    """Return smaller blocks, then smaller batches. The batch size affects output bytes, the block
    size does not."""
    candidates: list[Rung] = []
    size, block = batch, max(batch, BLOCK)
    while block:
        candidates.append(replace(single, batch=size, block=block, offload=True))
        size, block = next_sizes(size, block)
    return candidates + [replace(candidates[-1], prefill=tokens) for tokens in MLP_CHUNKS]
