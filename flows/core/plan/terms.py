"""Memory terms of a stage that loads half a model: weights, streamed layers and their prefetch,
caches, attention on a GPU, prefetched inputs, and library overhead.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

from artifacts.wording import counted
from flows.core.checkpoint.adapters import NUMBER_BYTES
from flows.core.checkpoint.precision import BYTES, QUANTIZED, PartSettings, no_bfloat16
from flows.core.console.lines import gib
from flows.core.plan.half import BatchEstimate
from flows.core.plan.ladder import Rung
from flows.core.plan.stage_estimate import Conditions, Purpose, Reason, Term
from flows.core.plan.workloads import COPIES, PIXEL_BYTES, Workload
from stages.memory.oom_retry import items_per_block
from stages.models.footprint import FittedCosts, Size
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
    """Yield the weights of a half as its rung places them, and what bringing them there takes."""
    if adapter := settings.adapter:
        numbers = {"part": adapter.parameters / 1e6, "each": NUMBER_BYTES}
        yield Term.of("weight", adapter.bytes, Reason.ADAPTER, **numbers)
    place = _layers_in_turn if rung.offload else _loaded_weights
    yield from place(half, settings, rung, device)


def _loaded_weights(
    half: PartProfile, settings: PartSettings, rung: Rung, device: str
) -> Iterator[Term]:
    """Yield the weights of a half that is on the device as a whole, and what reading and unpacking
    them takes."""
    item_bytes, precision = BYTES.get(settings.dtype, 4), settings.precision
    reason, parameters, form = Reason.WEIGHTS, 0, precision
    if graph := settings.graph:
        reason, parameters = Reason.GRAPHS, graph.parameters
    elif gguf := settings.gguf:
        reason, form = Reason.GGUF, f"{gib(gguf.bytes)} of {gguf.kind}"
    elif rung.packed:
        reason, parameters, form = Reason.PACKED, half.packed_parameters, half.packed_form
    elif half.loader_unpacks:
        reason, form = Reason.AS_SAVED, half.stored_as
    elif precision in QUANTIZED:
        reason, parameters = Reason.QUANTIZED, half.linear_parameters
    counts = {"all": half.parameters / 1e6, "part": parameters / 1e6}
    yield Term.of("weight", settings.weight_bytes, reason, **counts, each=item_bytes, form=form)
    if settings.graph or settings.gguf:
        return
    if device.startswith("cuda") and precision not in QUANTIZED and not half.stored_as:
        casts = half.stored_bytes != half.parameters * item_bytes
        reason = Reason.PINNED_AND_CAST if casts else Reason.PINNED
        yield Term.of("host", (1 + casts) * PINNED_LOAD_BYTES, reason)
    if rung.packed or precision in ("nf4", "fp4"):
        largest = half.largest_packed if rung.packed else half.largest_linear
        numbers = {"numbers": largest, "each": item_bytes}
        yield Term.of("workspace", largest * item_bytes, Reason.LAYER_UNPACKED, **numbers)
    if rung.packed:
        most = UNPACKED_BYTES[device.partition(":")[0]]
        yield Term.of("workspace", min(most, 4 * half.largest_packed), Reason.ROWS_UNPACKED)


def _layers_in_turn(
    half: PartProfile, settings: PartSettings, rung: Rung, device: str
) -> Iterator[Term]:
    """Yield the weights of a half whose layers come to the device in turn: for each token from
    pinned host memory (on a CPU, from the disk), or once per block of chunks from the disk."""
    item_bytes, on_gpu = BYTES.get(settings.dtype, 4), device.startswith("cuda")
    layer, ends = half.layer_parameters * item_bytes, half.outside_parameters * item_bytes
    brought = "read" if rung.block else "copied"
    numbers = {"layers": half.layers, "layer": gib(layer), "brought": brought}
    if rung.block or on_gpu:
        yield Term.of("weight", 2 * layer + ends, Reason.TWO_LAYERS, **numbers)
    else:
        yield Term.of("weight", layer + ends, Reason.LARGEST_LAYER, **numbers)
    if on_gpu and rung.block:
        yield Term.of("host", 2 * power_of_two(layer), Reason.LAYERS_PINNED)
    elif on_gpu:
        size, millions = settings.weight_bytes + 2 * layer, half.parameters / 1e6
        yield Term.of("host", size, Reason.HALF_PINNED, all=millions, each=item_bytes)
    if rung.block and half.stored_bytes != half.parameters * item_bytes:
        largest = half.largest_linear * half.stored_bytes // half.parameters
        yield Term.of(on_host(device), largest, Reason.MATRIX_CAST)


def power_of_two(count: int) -> int:
    """Return the bytes of a pinned allocation: the next power of two."""
    return 1 << max(0, count - 1).bit_length()


def on_host(device: str) -> Purpose:
    """Return what host memory counts as: on a CPU it is the memory that a stage computes in."""
    return "workspace" if device == "cpu" else "host"


def batches_per_block(rung: Rung, workload: Workload, rows: int) -> int:
    """Return the number of batches of `rows` that pass a layer together."""
    block = items_per_block(rung.block, workload.frames * workload.parts)
    return max(1, min(block // rows, math.ceil(workload.chunks / rows)))


def waiting_terms(
    others: int, workload: Workload, rows: int, costs: BatchEstimate, device: str
) -> Iterator[Term]:
    """Yield the memory of so many batches that wait while another one passes a streamed layer."""
    if others < 1:
        return
    held, batches = math.ceil(max(costs.waiting_bytes, costs.kept_bytes)), counted(others, "batch")
    yield Term.of("activation", others * held, Reason.WAITING, batches=batches, each=gib(held))
    pixels = rows * workload.units * PIXEL_BYTES
    numbers = {"batches": batches, "each": gib(pixels)}
    yield Term.of(on_host(device), others * pixels, Reason.WAITING_PIXELS, **numbers)


def block_prefetch(rung: Rung, workload: Workload, rows: int) -> Term:
    """Return the prefetch term of the next block, whose batches are prepared one by one."""
    batches = batches_per_block(rung, workload, rows)
    images = max(rows, workload.parts)  # all tiles of an image are in memory together
    pixels, frames = images * workload.units * PIXEL_BYTES, workload.reading_bytes(rows)
    size = batches * pixels + frames if workload.chunks > batches * rows else 0
    return Term.of("workspace", size, Reason.NEXT_BLOCK, batches=batches, each=gib(pixels))


def products(
    half: PartProfile, settings: PartSettings, rung: Rung, tokens: int, device: str
) -> Iterator[Term]:
    """Yield the memory of int8 products for `tokens` of a batch."""
    if settings.precision != "int8":
        return
    at_once, rows = min(tokens, rung.prefill or tokens), half.widest_linear
    item_bytes = INT8_BYTES[device.partition(":")[0]]
    numbers = {"tokens": at_once, "rows": rows, "each": item_bytes}
    yield Term.of("workspace", at_once * rows * item_bytes, Reason.PRODUCTS, **numbers)


def adapter_terms(settings: PartSettings, rung: Rung, tokens: int) -> Iterator[Term]:
    """Yield the output memory of an adapter's widest layer for `tokens` of a batch."""
    if settings.adapter is None:
        return
    at_once, rows = min(tokens, rung.prefill or tokens), settings.adapter.rows
    numbers = {"tokens": at_once, "rows": rows, "each": ADDED_BYTES}
    yield Term.of("workspace", at_once * rows * ADDED_BYTES, Reason.ADAPTER_OUTPUTS, **numbers)


def cache(rung: Rung, whole: int, half: PartProfile, contents: str) -> Iterator[Term]:
    """Yield a KV cache of so many bytes where its rung puts it. `contents`: what it holds."""
    layers = max(1, half.layers)
    of_cache = partial(Term.of, contents=contents, here=KV_LAYERS_HERE, layers=layers, bits=KV_BITS)
    if rung.kv == "offloaded":
        yield of_cache("kv", whole * min(1.0, KV_LAYERS_HERE / layers), Reason.CACHE_LAYERS)
        pinned = 2 * layers * power_of_two(math.ceil(whole / (2 * layers)))
        yield of_cache("host", pinned, Reason.CACHE_PINNED)
    elif rung.kv == "quantized":
        yield of_cache("kv", whole * KV_BITS / 16, Reason.CACHE_BITS)
        yield of_cache("workspace", KV_UNPACKED * whole / layers, Reason.CACHE_UNPACKED)
    else:
        yield of_cache("kv", whole, Reason.CACHE)


def overhead_terms(
    terms: Sequence[Term], conditions: Conditions, prefetch: Term, libraries: int = LIBRARIES_BYTES
) -> Iterator[Term]:
    """Yield the memory besides weights and activations: fragmentation, libraries and prefetch."""
    computing = sum(term.bytes for term in terms if term.part == "activation")
    yield Term.of("workspace", FRAGMENTATION * computing, Reason.FRAGMENTATION, share=FRAGMENTATION)
    if conditions.device.startswith("cuda"):
        yield Term.of("workspace", GPU_WORKSPACE_BYTES, Reason.CUBLAS)
        measured = conditions.context_bytes != CONTEXT_BYTES
        reason = Reason.CONTEXT_MEASURED if measured else Reason.CONTEXT
        yield Term.of("context", conditions.context_bytes, reason)
    host_part = on_host(conditions.device)
    yield replace(prefetch, part=host_part)
    yield Term.of(host_part, libraries, Reason.LIBRARIES)


def prefetch_of(workload: Workload, rows: int, batch_bytes: int, contents: str) -> Term:
    batches = min(PREFETCH_BATCHES, math.ceil(workload.chunks / rows) - 1)
    numbers = {"batches": counted(batches, "batch"), "contents": contents, "each": gib(batch_bytes)}
    return Term.of("workspace", batches * batch_bytes, Reason.READ_AHEAD, **numbers)


def frames_prefetch(workload: Workload, rows: int) -> Term:
    """Return the term of prefetched batches: pixels of all, and frames of the one being read."""
    pixels, frames = rows * workload.units * PIXEL_BYTES, workload.reading_bytes(rows)
    if workload.kind == "video":
        return prefetch_of(workload, rows, pixels + frames, "pixels and frames")
    ahead = prefetch_of(workload, rows, pixels, "pixels")
    numbers = {"ahead": ahead.why, "copies": COPIES, "each": gib(workload.frame_bytes)}
    return Term.of("workspace", ahead.bytes + frames, Reason.IMAGES_READ_AHEAD, **numbers)


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
    numbers = {
        "chunks": counted(more, "more chunk"),
        "each": gib(frames),
        "processor": gib(processor),
    }
    reason = Reason.READERS_PROCESSORS if processor else Reason.READERS
    yield Term.of(on_host(device), more * (frames + processor), reason, **numbers)


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
    figure = partial(FittedCosts(half.batch_costs).figure, Size(workload.kind, rows, units))
    if settings.graph:
        yield Term.of("workspace", figure(lambda cost: cost.scores_bytes), Reason.SCORES_OF_GRAPH)
    elif not device.startswith("cuda"):
        return
    elif settings.dtype == "bfloat16" and no_bfloat16(device):
        capability = "{}.{}".format(*device_capability(device))
        scores = figure(lambda cost: cost.scores_bytes)
        yield Term.of("workspace", scores, Reason.SCORES, capability=capability)
    elif masks := figure(lambda cost: cost.mask_bytes):
        # A fused kernel needs numbers instead of booleans, and rows of a multiple of 16 numbers.
        yield Term.of("workspace", masks, Reason.MASKS)
