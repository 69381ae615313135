"""The arithmetic of each stage, term by term; knows no budget."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

from artifacts.words import counted
from flows.console.display import gib
from flows.job.models import Model
from flows.job.precision import BYTES, DTYPES, QUANTIZED, HalfSettings, weight_bytes
from flows.planning.attention import attention_terms
from flows.planning.estimate import StageEstimate, Term
from flows.planning.loads import COPIES, PIXEL_BYTES, Load
from flows.planning.rungs import Rung
from flows.planning.streamed import block_ahead, power_of_two, waiting_terms, weight_terms
from flows.planning.works import Expected, decoder_by_dimensions, encoder_by_dimensions, expected
from stages.frames import PACK_BYTES
from stages.models.ahead import AHEAD
from stages.models.card import HalfCard
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
PICTURES_HELD = 20
"""Pictures that a video decoder holds: 16 that others refer to, and those of its threads."""
YUV_BYTES = 1.5
"""Bytes of a pixel as videos have it."""
FILE_BYTES = 8 << 20
"""What reading a video takes beside its pictures: its index, its times, the container's buffers."""
READING_BYTES = 12
"""A pixel of a picture while it is read: Pillow's 4 twice where it is turned upright, the 3 stored;
16 where it was transparent."""


def estimate(
    model: Model,
    rung: Rung,
    loads: Sequence[Load],
    device: str,
    max_new_tokens: int,
    context_bytes: int = CONTEXT_BYTES,
) -> StageEstimate:
    """What a stage takes on a rung at the worst of its loads."""
    calculate = partial(STAGES[rung.stage], model, rung, device=device, new=max_new_tokens)
    found = max((calculate(load) for load in loads), key=lambda found: found.peak_bytes)
    if not found.context_bytes:
        return found
    here = Term(part="context", bytes=context_bytes, why="the driver, as it was measured here")
    known = context_bytes != CONTEXT_BYTES
    terms = (here if t.part == "context" and known else t for t in found.terms)
    return replace(found, context_bytes=context_bytes, terms=tuple(terms))


def _frames(model: Model, rung: Rung, load: Load, *, device: str, new: int) -> StageEstimate:
    high, wide = load.shown
    files = max(1, min(rung.batch, load.chunks))
    if load.kind == "video":
        pictures = math.ceil(PICTURES_HELD * YUV_BYTES * high * wide) + FILE_BYTES
        terms = [
            Term(
                part="activation",
                bytes=files * (load.frame_bytes + pictures),
                why=f"{counted(files, 'file')} at once x ({counted(load.frames, 'frame')} of "
                f"{load.stored[1]}x{load.stored[0]}x3, and {PICTURES_HELD} pictures of "
                f"{wide}x{high} in the decoder)",
            )
        ]
    else:
        held = PACK_BYTES + READING_BYTES * math.prod(load.stored)
        size = f"{PACK_BYTES >> 20} MiB"
        why = f"{counted(files, 'pack')} of pictures of {size}, each with one being read"
        terms = [Term(part="activation", bytes=files * held, why=why)]
    # The device does nothing: a GPU's stage is measured by the host's memory as well.
    return StageEstimate.of(rung, terms, device="cpu", load=load)


def _encode(model: Model, rung: Rung, load: Load, *, device: str, new: int) -> StageEstimate:
    half, rows = model.card.vision, load.rows("encode", rung.batch)
    settings = settings_on(model.vision, half, rung)
    pixels = rows * load.units * PIXEL_BYTES
    terms = list(_weights(half, settings, rung, device))
    work = None
    if model.card.route == "joint":
        why = (
            f"{counted(rows, 'chunk')} x {load.units:,} numbers of pixels, which go on as they are"
        )
        terms.append(Term(part="activation", bytes=2 * pixels, why=why))
    else:
        work = _encoder_work(model, settings, rows, load, rung.prefill)
        why = f"{counted(rows, 'chunk')} x {load.units:,} numbers of pixels: {_told(model, work)}"
        if rung.prefill:
            why += f", {rung.prefill} positions at once through an MLP"
        terms.append(Term(part="activation", bytes=math.ceil(work.peak_bytes), why=why))
        terms += waiting_terms(rung, load, rows, work, device)
        terms += attention_terms(half, settings, load, rows, load.units, device)
        # Its patches are not counted, but each is multiplied with all that is in the layers.
        tokens = math.ceil(work.flops / (2 * max(1, half.linear_parameters)))
        terms += _products(half, settings, rung, tokens, device)
    ahead = block_ahead(rung, load, rows) if rung.block else _frames_ahead(load, rows)
    terms += _around(rung, terms, device, ahead)
    flops = work.flops * load.chunks / rows if work else 0
    guessed = work is not None and (not work.known or model.card.by_dimensions)
    return StageEstimate.of(
        rung, terms, device=device, load=load, flops=flops, by_dimensions=guessed
    )


def _decode(model: Model, rung: Rung, load: Load, *, device: str, new: int) -> StageEstimate:
    half, rows = model.card.language, load.rows("decode", rung.batch)
    settings = settings_on(model.language, half, rung)
    terms = list(_weights(half, settings, rung, device))
    work = _decoder_work(model, settings, load, rows, new, rung.prefill)
    whole = math.ceil(work.kept_bytes)
    why = f"{counted(rows, 'row')} x ({load.tokens:,} + {new} tokens) x "
    why += f"{whole / rows / (load.tokens + new):,.0f} bytes"
    terms += _cache(rung, whole, half, why)
    computing = max(0, math.ceil(work.peak_bytes) - whole)
    why = f"{counted(rows, 'row')} x {load.tokens:,} tokens: {_told(model, work)}, beside the cache"
    if rung.prefill:
        why += f", {rung.prefill} at once through an MLP"
    terms.append(Term(part="activation", bytes=computing, why=why))
    terms += _products(half, settings, rung, rows * load.tokens, device)
    terms += attention_terms(half, settings, load, rows, load.tokens, device)
    ahead = _ahead(load, rows, rows * load.feature_bytes, "features")
    terms += _around(rung, terms, device, ahead)
    flops = (work.flops + new * work.step_flops) * load.chunks / rows
    return StageEstimate.of(
        rung,
        terms,
        device=device,
        load=load,
        flops=flops,
        by_dimensions=not work.known or model.card.by_dimensions,
    )


STAGES: dict[str, Callable[..., StageEstimate]] = {
    "frames": _frames,
    "encode": _encode,
    "decode": _decode,
}


def settings_on(settings: HalfSettings, half: HalfCard, rung: Rung) -> HalfSettings:
    """What a half computes in on a rung."""
    precision = rung.precision or settings.precision
    dtype = DTYPES.get(precision, settings.dtype)
    taken = weight_bytes(half, precision, dtype)
    if not half.parameters:
        taken = 0
    return replace(settings, precision=precision, dtype=dtype, weight_bytes=taken)


def _weights(half: HalfCard, settings: HalfSettings, rung: Rung, device: str) -> Iterator[Term]:
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


def _products(
    half: HalfCard, settings: HalfSettings, rung: Rung, tokens: int, device: str
) -> Iterator[Term]:
    """Of `tokens` of a batch, what their products in 8 bit take."""
    if settings.precision != "int8":
        return
    at_once = min(tokens, rung.prefill or tokens)
    each = INT8_BYTES[device.partition(":")[0]]
    why = f"products in 8 bit: {at_once:,} tokens x {half.widest_linear:,} numbers x {each} bytes"
    yield Term(part="workspace", bytes=at_once * half.widest_linear * each, why=why)


def _cache(rung: Rung, whole: int, half: HalfCard, why: str) -> Iterator[Term]:
    layers = max(1, half.layers)
    if rung.kv == "offloaded":
        here = math.ceil(whole * min(1.0, KV_LAYERS_HERE / layers))
        told = f"{KV_LAYERS_HERE} of {layers} layers of {why}"
        yield Term(part="kv", bytes=here, why=told)
        pinned = 2 * layers * power_of_two(math.ceil(whole / (2 * layers)))
        yield Term(part="host", bytes=pinned, why=f"{why}, pinned: each a power of two")
    elif rung.kv == "quantized":
        packed = math.ceil(whole * KV_BITS / 16)
        yield Term(part="kv", bytes=packed, why=f"{why}, {KV_BITS} bits each")
        unpacked = math.ceil(KV_UNPACKED * whole / layers)
        yield Term(part="workspace", bytes=unpacked, why="one layer of the KV cache unpacked")
    else:
        yield Term(part="kv", bytes=whole, why=why)


def _around(rung: Rung, terms: Sequence[Term], device: str, ahead: Term) -> Iterator[Term]:
    """What is needed beside weights and what is computed with."""
    computing = sum(term.bytes for term in terms if term.part == "activation")
    back = math.ceil(HELD_BACK * computing)
    why = f"{HELD_BACK:.0%} of what is computed with, held back by the allocator"
    yield Term(part="workspace", bytes=back, why=why)
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


def _ahead(load: Load, rows: int, each: int, what: str) -> Term:
    batches = min(AHEAD, math.ceil(load.chunks / rows) - 1)
    why = f"{batches} batch{'' if batches == 1 else 'es'} of {what} read ahead x {gib(each)}"
    return Term(part="workspace", bytes=batches * each, why=why)


def _frames_ahead(load: Load, rows: int) -> Term:
    """Of batches that are read ahead: pixels of all, and frames of what is being read."""
    pixels, frames = rows * load.units * PIXEL_BYTES, load.reading_bytes(rows)
    if load.kind == "video":
        return _ahead(load, rows, pixels + frames, "pixels and frames")
    term = _ahead(load, rows, pixels, "pixels")
    why = f"{term.why}, and {COPIES} copies of a picture of {gib(load.frame_bytes)} being read"
    return replace(term, bytes=term.bytes + frames, why=why)


def _encoder_work(
    model: Model, settings: HalfSettings, rows: int, load: Load, prefill: int
) -> Expected:
    half, each = model.card.vision, BYTES.get(settings.dtype, 4)
    if not half.works:
        return encoder_by_dimensions(half, each, rows, load.units, load.feature_bytes)
    return expected(half.works, load.kind, rows, load.units, each=each, prefill=prefill)


def _decoder_work(
    model: Model, settings: HalfSettings, load: Load, rows: int, new: int, prefill: int
) -> Expected:
    works, each = model.card.language.works, BYTES.get(settings.dtype, 4)
    if not works:
        return decoder_by_dimensions(model.card, each, rows, load.tokens, new=new, prefill=prefill)
    return expected(works, load.kind, rows, load.tokens, each=each, new=new, prefill=prefill)


def _told(model: Model, work: Expected) -> str:
    guessed = model.card.by_dimensions or not work.known
    return "an estimate by dimensions" if guessed else "a run without data"
