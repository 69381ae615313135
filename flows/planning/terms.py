"""Terms that a stage which loads half a model has in common with others: weights, caches, what is
read ahead, what libraries take; knows no stage."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from flows.console.display import gib
from flows.job.precision import BYTES, QUANTIZED, PartSettings
from flows.planning.estimate import Term
from flows.planning.loads import COPIES, PIXEL_BYTES, Load
from flows.planning.rungs import Rung
from flows.planning.streamed import power_of_two, weight_terms
from stages.models.ahead import AHEAD
from stages.models.card import PartCard
from stages.process.device_limit import CONTEXT_BYTES

GPU_WORKSPACE_BYTES = 32 << 20
"""What cuBLAS keeps for itself by torch's default on the largest cards (8 on others)."""
HELD_BACK = 0.04
"""Part of what is computed with that the allocator holds in blocks nothing fits into."""
LIBRARIES_BYTES = 32 << 20
"""What a stage process takes beside its imports and its model: the processor and its tokenizer, the
model's classes, threads."""
INT8_BYTES = {"cpu": 9, "cuda": 4}
"""Of each number that a layer in 8 bit makes, beside what a plain one holds: the product in 32-bit
integers; on a CPU the scales and the scaled product in 32 bit too (bitsandbytes'
`int8_mm_dequant`), when what is made of it is not there yet. 9 is measured (benchmarks/plan.py)."""
KV_BITS = 8
"""Of a number of a quantized KV cache."""
KV_UNPACKED = 3
"""Times that one layer's share of the whole cache is there while it is packed or unpacked: in 32
bit, scaled, and in the computing precision."""
KV_LAYERS_HERE = 2
"""Layers of an offloaded KV cache that are on the device: the one that computes and the next."""


def weights(half: PartCard, settings: PartSettings, rung: Rung, device: str) -> Iterator[Term]:
    each, precision = BYTES.get(settings.dtype, 4), settings.precision
    count = f"{half.parameters / 1e6:,.0f} M"
    ends = max(0, half.parameters - half.layers * half.layer_parameters) * each
    layer = half.layer_parameters * each
    if rung.block:
        yield from weight_terms(half, layer, ends, each, device)
        return
    if rung.offload:
        why = f"the largest of {half.layers} layers ({gib(layer)}) and what is outside of them"
        yield Term(part="weight", bytes=layer + ends, why=why)
        if device.startswith("cuda"):
            why = f"{count} numbers x {each} bytes, kept in host memory"
            yield Term(part="host", bytes=settings.weight_bytes, why=why)
        return
    why = f"{count} numbers x {each} bytes ({precision})"
    if half.stored_as:
        why = f"{count} numbers as they were saved ({half.stored_as})"
    elif precision in QUANTIZED:
        linear = half.linear_parameters / 1e6
        why = f"{linear:,.0f} M of {count} numbers in {precision} with scales, others x {each}"
    yield Term(part="weight", bytes=settings.weight_bytes, why=why)
    if precision in ("nf4", "fp4"):
        why = f"the largest quantized layer unpacked: {half.largest_linear:,} numbers x {each}"
        yield Term(part="workspace", bytes=half.largest_linear * each, why=why)


def products(
    half: PartCard, settings: PartSettings, rung: Rung, tokens: int, device: str
) -> Iterator[Term]:
    """Of `tokens` of a batch, what their products in 8 bit take."""
    if settings.precision != "int8":
        return
    at_once = min(tokens, rung.prefill or tokens)
    each = INT8_BYTES[device.partition(":")[0]]
    why = f"products in 8 bit: {at_once:,} tokens x {half.widest_linear:,} numbers x {each} bytes"
    yield Term(part="workspace", bytes=at_once * half.widest_linear * each, why=why)


def cache(rung: Rung, whole: int, half: PartCard, why: str) -> Iterator[Term]:
    layers = max(1, half.layers)
    if rung.kv == "offloaded":
        here = math.ceil(whole * min(1.0, KV_LAYERS_HERE / layers))
        yield Term(part="kv", bytes=here, why=f"{KV_LAYERS_HERE} of {layers} layers of {why}")
        pinned = 2 * layers * power_of_two(math.ceil(whole / (2 * layers)))
        yield Term(part="host", bytes=pinned, why=f"{why}, pinned: each a power of two")
    elif rung.kv == "quantized":
        packed = math.ceil(whole * KV_BITS / 16)
        yield Term(part="kv", bytes=packed, why=f"{why}, {KV_BITS} bits each")
        unpacked = math.ceil(KV_UNPACKED * whole / layers)
        yield Term(part="workspace", bytes=unpacked, why="one layer of the KV cache unpacked")
    else:
        yield Term(part="kv", bytes=whole, why=why)


def around(rung: Rung, terms: Sequence[Term], device: str, ahead: Term) -> Iterator[Term]:
    """What is needed beside weights and what is computed with."""
    computing = sum(term.bytes for term in terms if term.part == "activation")
    why = f"{HELD_BACK:.0%} of what is computed with, held back by the allocator"
    yield Term(part="workspace", bytes=math.ceil(HELD_BACK * computing), why=why)
    if device.startswith("cuda"):
        yield Term(part="workspace", bytes=GPU_WORKSPACE_BYTES, why="scratch of cuBLAS")
        yield Term(
            part="context",
            bytes=CONTEXT_BYTES,
            why="the driver, and torch's kernels, until measured",
        )
        yield replace(ahead, part="host")
        yield Term(part="host", bytes=LIBRARIES_BYTES, why="processor, tokenizer, classes")
    else:
        yield ahead
        yield Term(part="workspace", bytes=LIBRARIES_BYTES, why="processor, tokenizer, classes")


def ahead_of(load: Load, rows: int, each: int, what: str) -> Term:
    batches = min(AHEAD, math.ceil(load.chunks / rows) - 1)
    why = f"{batches} batch{'' if batches == 1 else 'es'} of {what} read ahead x {gib(each)}"
    return Term(part="workspace", bytes=batches * each, why=why)


def frames_ahead(load: Load, rows: int) -> Term:
    """Of batches that are read ahead: pixels of all, and frames of what is being read."""
    pixels, frames = rows * load.units * PIXEL_BYTES, load.reading_bytes(rows)
    if load.kind == "video":
        return ahead_of(load, rows, pixels + frames, "pixels and frames")
    term = ahead_of(load, rows, pixels, "pixels")
    why = f"{term.why}, and {COPIES} copies of a picture of {gib(load.frame_bytes)} being read"
    return replace(term, bytes=term.bytes + frames, why=why)
