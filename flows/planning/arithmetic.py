"""The arithmetic of each stage, term by term; knows no budget."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from artifacts.words import counted
from flows.job.models import Model
from flows.job.precision import BYTES, DTYPES, HalfSettings, weight_bytes
from flows.planning.attention import attention_terms
from flows.planning.estimate import StageEstimate, Term
from flows.planning.loads import PIXEL_BYTES, Load
from flows.planning.rungs import Rung
from flows.planning.streamed import block_ahead, waiting_terms
from flows.planning.terms import ahead_of, around, cache, frames_ahead, products, weights
from flows.planning.works import Expected, decoder_by_dimensions, encoder_by_dimensions, expected
from stages.frames import PACK_BYTES
from stages.models.card import HalfCard
from stages.process.device_limit import CONTEXT_BYTES

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
    settings = settings_as_run(model.vision, half, rung)
    pixels = rows * load.units * PIXEL_BYTES
    terms = list(weights(half, settings, rung, device))
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
        terms += products(half, settings, rung, tokens, device)
    ahead = block_ahead(rung, load, rows) if rung.block else frames_ahead(load, rows)
    terms += around(rung, terms, device, ahead)
    flops = work.flops * load.chunks / rows if work else 0
    guessed = work is not None and (not work.known or model.card.by_dimensions)
    return StageEstimate.of(
        rung, terms, device=device, load=load, flops=flops, by_dimensions=guessed
    )


def _decode(model: Model, rung: Rung, load: Load, *, device: str, new: int) -> StageEstimate:
    half, rows = model.card.language, load.rows("decode", rung.batch)
    settings = settings_as_run(model.language, half, rung)
    terms = list(weights(half, settings, rung, device))
    work = _decoder_work(model, settings, load, rows, new, rung.prefill)
    whole = math.ceil(work.kept_bytes)
    why = f"{counted(rows, 'row')} x ({load.tokens:,} + {new} tokens) x "
    why += f"{whole / rows / (load.tokens + new):,.0f} bytes"
    terms += cache(rung, whole, half, why)
    computing = max(0, math.ceil(work.peak_bytes) - whole)
    why = f"{counted(rows, 'row')} x {load.tokens:,} tokens: {_told(model, work)}, beside the cache"
    if rung.prefill:
        why += f", {rung.prefill} at once through an MLP"
    terms.append(Term(part="activation", bytes=computing, why=why))
    terms += products(half, settings, rung, rows * load.tokens, device)
    terms += attention_terms(half, settings, load, rows, load.tokens, device)
    ahead = ahead_of(load, rows, rows * load.feature_bytes, "features")
    terms += around(rung, terms, device, ahead)
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


def settings_as_run(settings: HalfSettings, half: HalfCard, rung: Rung) -> HalfSettings:
    """What a half computes in on a rung."""
    precision = rung.precision or settings.precision
    dtype = DTYPES.get(precision, settings.dtype)
    taken = weight_bytes(half, precision, dtype)
    if not half.parameters:
        taken = 0
    return replace(settings, precision=precision, dtype=dtype, weight_bytes=taken)


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
