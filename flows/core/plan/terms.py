"""Memory terms of a stage that loads half a model: weights, streamed layers and their prefetch,
caches, attention on a GPU, prefetched inputs, and library overhead.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

from flows.core.checkpoint.adapters import NUMBER_BYTES
from flows.core.checkpoint.precision import BYTES, QUANTIZED, PartSettings, no_bfloat16
from flows.core.console.lines import gib
from flows.core.plan.estimate import Expected
from flows.core.plan.ladder import Rung
from flows.core.plan.stage_estimate import Purpose, Term
from flows.core.plan.workloads import COPIES, PIXEL_BYTES, Workload
from stages.memory.oom_retry import items_per_block
from stages.models.footprint import at_size
from stages.models.half_job import PINNED_LOAD_BYTES
from stages.models.prefetch import PREFETCH_BATCHES
from stages.models.profile import PartProfile
from stages.process.device import device_capability
from stages.process.device_limit import CONTEXT_BYTES

GPU_WORKSPACE_BYTES = 32 << 20
"""cuBLAS workspace in bytes by torch's default on the largest GPUs (8 MiB on others)."""
FRAGMENTATION = 0.04
"""Share of computing memory that the allocator loses to fragmentation."""
LIBRARIES_BYTES = 32 << 20
"""Bytes of a stage process besides its imports and model: processor, tokenizer, model classes and
threads."""
INT8_BYTES = {"cpu": 9, "cuda": 4}
"""Extra bytes per output number of an int8 layer, compared with a plain one: the product in 32-bit
integers. On a CPU also the scales and the scaled product in 32 bit (bitsandbytes'
`int8_mm_dequant`). 9 is measured (benchmarks/plan.py)."""
UNPACKED_BYTES = {"cpu": 8 << 20, "cuda": 40 << 20}
"""Maximum bytes of the rows of a packed layer that are unpacked at once
(stages/models/stored/codes.py)."""
ADDED_BYTES = 3 * NUMBER_BYTES
"""Extra bytes per output number of an adapted layer, compared with a plain one: the adapter's
output, its scaled copy, and the sum."""
KV_BITS = 8
"""Bits per number of a quantized KV cache."""
KV_UNPACKED = 3
"""Copies of one layer's cache during packing or unpacking: in 32 bit, scaled, and in the computing
precision."""
KV_LAYERS_HERE = 2
"""Layers of an offloaded KV cache on the device: the current one and the next."""


def weights(half: PartProfile, settings: PartSettings, rung: Rung, device: str) -> Iterator[Term]:
    item_bytes, precision = BYTES.get(settings.dtype, 4), settings.precision
    count = f"{half.parameters / 1e6:,.0f} M"
    ends = half.outside_parameters * item_bytes
    layer = half.layer_parameters * item_bytes
    if rung.block:
        yield from weight_terms(half, layer, ends, item_bytes, device)
        return
    if adapter := settings.adapter:
        why = f"the adapter: {adapter.parameters / 1e6:,.2f} M numbers x {NUMBER_BYTES} bytes"
        yield Term(part="weight", bytes=adapter.bytes, why=why)
    if rung.offload and device.startswith("cuda"):
        yield two_layers(half, layer, ends, "copied")
        why = f"{count} numbers x {item_bytes} bytes, in pinned host memory, and 2 layers on the "
        why += "way there"
        yield Term(part="host", bytes=settings.weight_bytes + 2 * layer, why=why)
        return
    if rung.offload:
        why = f"the largest of {half.layers} layers ({gib(layer)}) and modules outside of them"
        yield Term(part="weight", bytes=layer + ends, why=why)
        return
    if settings.graph:
        graph = f"the graphs, for {settings.graph.parameters / 1e6:,.1f} M of {count} numbers"
        why = f"{graph}, in {precision}; the others x {item_bytes} bytes"
        yield Term(part="weight", bytes=settings.weight_bytes, why=why)
        return
    if gguf := settings.gguf:
        why = f"{gib(gguf.bytes)} of {gguf.kind}; the others: {count} numbers x {item_bytes}"
        yield Term(part="weight", bytes=settings.weight_bytes, why=why)
        return
    why = f"{count} numbers x {item_bytes} bytes ({precision})"
    if rung.packed:
        why = f"{half.packed_parameters / 1e6:,.0f} M of {count} numbers in {half.packed_form}; "
        why += f"others x {item_bytes}"
    elif half.loader_unpacks:
        why = f"{count} numbers as they were saved ({half.stored_as})"
    elif precision in QUANTIZED:
        linear = half.linear_parameters / 1e6
        why = f"{linear:,.0f} M of {count} numbers in {precision} with scales, "
        why += f"others x {item_bytes}"
    yield Term(part="weight", bytes=settings.weight_bytes, why=why)
    if device.startswith("cuda") and precision not in QUANTIZED and not half.stored_as:
        copies = 2 if half.stored_bytes != half.parameters * item_bytes else 1
        why = "pinned memory through which weights are read" + " and cast" * (copies - 1)
        yield Term(part="host", bytes=copies * PINNED_LOAD_BYTES, why=why)
    if rung.packed or precision in ("nf4", "fp4"):
        unpacked = half.largest_packed if rung.packed else half.largest_linear
        why = f"the largest quantized layer unpacked: {unpacked:,} numbers x {item_bytes}"
        yield Term(part="workspace", bytes=unpacked * item_bytes, why=why)
    if rung.packed:
        most = UNPACKED_BYTES[device.partition(":")[0]]
        why = "the rows that are unpacked at once, in 32 bit"
        yield Term(part="workspace", bytes=min(most, 4 * half.largest_packed), why=why)


def power_of_two(count: int) -> int:
    """Return the bytes of a pinned allocation: the next power of two."""
    return 1 << max(0, count - 1).bit_length()


def weight_terms(
    half: PartProfile, layer: int, ends: int, item_bytes: int, device: str
) -> Iterator[Term]:
    """Yield the weight terms of a streamed half. `layer`: bytes per layer. `ends`: bytes outside of
    layers. `item_bytes`: bytes per number."""
    yield two_layers(half, layer, ends, "read")
    if device.startswith("cuda"):
        why = "2 layers in pinned host memory, each a power of two"
        yield Term(part="host", bytes=2 * power_of_two(layer), why=why)
    if half.stored_bytes != half.parameters * item_bytes:
        largest = half.largest_linear * half.stored_bytes // half.parameters
        part: Purpose = "host" if device.startswith("cuda") else "workspace"
        yield Term(part=part, bytes=largest, why="the largest matrix as stored, to cast")


def two_layers(half: PartProfile, layer: int, ends: int, brought: str) -> Term:
    """Return the weights on the device of a half whose layers come in turn."""
    why = (
        f"2 of {half.layers} layers x {gib(layer)}, one computes while the next is {brought}; and "
    )
    return Term(part="weight", bytes=2 * layer + ends, why=f"{why}modules outside of layers")


def batches_per_block(rung: Rung, workload: Workload, rows: int) -> int:
    """Return the number of batches of `rows` that pass a layer together."""
    block = items_per_block(rung.block, workload.frames * workload.parts)
    return max(1, min(block // rows, math.ceil(workload.chunks / rows)))


def waiting_terms(
    others: int, workload: Workload, rows: int, costs: Expected, device: str
) -> Iterator[Term]:
    """Yield the memory of so many batches that wait while another one passes a streamed layer."""
    if others < 1:
        return
    held = math.ceil(max(costs.waiting_bytes, costs.kept_bytes))
    what = f"{others} batch{'' if others == 1 else 'es'}"
    why = f"{what} that wait for a layer x {gib(held)}"
    yield Term(part="activation", bytes=others * held, why=why)
    pixels = rows * workload.units * PIXEL_BYTES
    part: Purpose = "workspace" if device == "cpu" else "host"
    yield Term(part=part, bytes=others * pixels, why=f"pixels of {what} x {gib(pixels)}")


def block_prefetch(rung: Rung, workload: Workload, rows: int) -> Term:
    """Return the prefetch term of the next block, whose batches are prepared one by one."""
    batches = batches_per_block(rung, workload, rows)
    images = max(rows, workload.parts)  # all tiles of an image are in memory together
    pixels, frames = images * workload.units * PIXEL_BYTES, workload.reading_bytes(rows)
    next_one = batches * pixels + frames if workload.chunks > batches * rows else 0
    why = f"the next block's pixels, {batches} x {gib(pixels)}, and frames being read"
    return Term(part="workspace", bytes=next_one, why=why)


def products(
    half: PartProfile, settings: PartSettings, rung: Rung, tokens: int, device: str
) -> Iterator[Term]:
    """Yield the memory of int8 products for `tokens` of a batch."""
    if settings.precision != "int8":
        return
    at_once = min(tokens, rung.prefill or tokens)
    item_bytes = INT8_BYTES[device.partition(":")[0]]
    count = f"{at_once:,} tokens x {half.widest_linear:,} numbers"
    why = f"products in 8 bit: {count} x {item_bytes} bytes"
    yield Term(part="workspace", bytes=at_once * half.widest_linear * item_bytes, why=why)


def adapter_terms(settings: PartSettings, rung: Rung, tokens: int) -> Iterator[Term]:
    """Yield the output memory of an adapter's widest layer for `tokens` of a batch."""
    if settings.adapter is None:
        return
    at_once, rows = min(tokens, rung.prefill or tokens), settings.adapter.rows
    why = f"adapter outputs: {at_once:,} tokens x {rows:,} numbers x {ADDED_BYTES} bytes"
    yield Term(part="workspace", bytes=at_once * rows * ADDED_BYTES, why=why)


def cache(rung: Rung, whole: int, half: PartProfile, why: str) -> Iterator[Term]:
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


def overhead_terms(
    terms: Sequence[Term],
    device: str,
    prefetch: Term,
    libraries: int = LIBRARIES_BYTES,
) -> Iterator[Term]:
    """Yield the memory besides weights and activations: fragmentation, libraries and prefetch."""
    computing = sum(term.bytes for term in terms if term.part == "activation")
    why = f"{FRAGMENTATION:.0%} of computing memory, lost to fragmentation"
    yield Term(part="workspace", bytes=math.ceil(FRAGMENTATION * computing), why=why)
    here: Purpose = "workspace"
    if device.startswith("cuda"):
        here = "host"
        yield Term(part="workspace", bytes=GPU_WORKSPACE_BYTES, why="cuBLAS workspace")
        why = "the driver, and torch's kernels, until measured"
        yield Term(part="context", bytes=CONTEXT_BYTES, why=why)
    yield replace(prefetch, part=here)
    yield Term(part=here, bytes=libraries, why="processor, tokenizer, classes")


def prefetch_of(workload: Workload, rows: int, batch_bytes: int, what: str) -> Term:
    batches = min(PREFETCH_BATCHES, math.ceil(workload.chunks / rows) - 1)
    why = f"{batches} batch{'' if batches == 1 else 'es'} of {what} read ahead x {gib(batch_bytes)}"
    return Term(part="workspace", bytes=batches * batch_bytes, why=why)


def frames_prefetch(workload: Workload, rows: int) -> Term:
    """Return the term of prefetched batches: pixels of all, and frames of the one being read."""
    pixels, frames = rows * workload.units * PIXEL_BYTES, workload.reading_bytes(rows)
    if workload.kind == "video":
        return prefetch_of(workload, rows, pixels + frames, "pixels and frames")
    term = prefetch_of(workload, rows, pixels, "pixels")
    why = f"{term.why}, and {COPIES} copies of an image of {gib(workload.frame_bytes)} being read"
    return replace(term, bytes=term.bytes + frames, why=why)


def reader_terms(
    workload: Workload, rows: int, readers: int, processor: int, device: str
) -> Iterator[Term]:
    """Yield the memory of the threads that prepare chunks besides the first. Each thread holds a
    `processor` of so many bytes, and prepares one chunk of the prefetched batches at a time."""
    more = min(readers, workload.chunks, (1 + PREFETCH_BATCHES) * rows) - 1
    if more < 1:
        return
    # A video's frames as stored and as an array; the term of prefetched batches has its pixels.
    frames = 2 * workload.frame_bytes if workload.kind == "video" else workload.reading_bytes(1)
    part: Purpose = "workspace" if device == "cpu" else "host"
    why = f"{more} more chunk{'' if more == 1 else 's'} being prepared x {gib(frames)}"
    why += f", each with a processor of {gib(processor)}" if processor else ""
    yield Term(part=part, bytes=more * (frames + processor), why=why)


def attention_terms(
    half: PartProfile,
    settings: PartSettings,
    workload: Workload,
    rows: int,
    units: int,
    device: str,
) -> Iterator[Term]:
    """Yield attention memory that a dry run does not count, for graphs and on a GPU. A dry run
    counts that of a CPU's fused kernel."""
    size = partial(at_size, half.batch_costs, kind=workload.kind, rows=rows, units=units)
    if settings.graph:
        why = "scores of all pairs of tokens: a graph has no fused attention"
        yield Term(part="workspace", bytes=size(lambda w: w.scores_bytes), why=why)
    elif not device.startswith("cuda"):
        return
    elif settings.dtype == "bfloat16" and no_bfloat16(device):
        gpu = "compute capability {}.{}".format(*device_capability(device))
        why = f"scores of all pairs of tokens, in 32 bit: {gpu} has no fused attention in bf16"
        yield Term(part="workspace", bytes=size(lambda w: w.scores_bytes), why=why)
    elif masks := size(lambda w: w.mask_bytes):
        # A fused kernel needs numbers instead of booleans, and rows of a multiple of 16 numbers.
        why = "attention masks of a batch: as numbers, and padded"
        yield Term(part="workspace", bytes=masks, why=why)
