"""What each stage of a job still has to do, and how long that takes on a measured machine; opens no
file."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from artifacts.schema import MediaKind
from flows.console.display import duration
from flows.job.models import Model
from flows.job.precision import BYTES, DTYPES, QUANTIZED, SHORT, HalfSettings
from flows.job.prepare import Job
from flows.planning.loads import Load, load_of
from flows.planning.machine import ADVICE, Machine, find_machine
from flows.planning.rungs import Rung
from flows.planning.seconds import Effort, Pass, seconds
from flows.planning.sizes import Estimate
from flows.planning.streamed import batches_a_block
from flows.planning.works import Expected, decoder_by_dimensions, encoder_by_dimensions, expected
from stages.models.card import HalfCard

KINDS: tuple[MediaKind, ...] = ("video", "image")
MANY_TOKENS = 512
"""Go through an encoder's layers at once at the least."""
MADE_OF = 6
"""Numbers of the frames that each number of pixel input was made of when the machine was measured
(stages/memory/arithmetic.py)."""
STEP_CALLS = 30
"""Linear layers that generating one token calls as long as, beside those of the model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ToDo:
    """What is left of one kind of media."""

    load: Load
    """An ordinary chunk of it."""
    pixels: float
    """To be decoded."""
    frame_bytes: float
    """Frames to be stored."""
    encode: int
    """Chunks without features."""
    decode: int
    """Chunks without a caption."""


def stage_seconds(
    job: Job,
    rungs: Mapping[str, Rung],
    found: Sequence[Estimate],
    machine: Machine,
    new_tokens: int | None = None,
) -> dict[str, float | None]:
    """Seconds of each stage, when all of its captions are `new_tokens` long (None: as long as they
    may be); None for a stage that needs what was not measured."""
    left = to_do(job, found)
    new = job.config.max_new_tokens if new_tokens is None else new_tokens
    efforts = {
        "frames": _frames(left),
        "encode": _encode(job.model, rungs["encode"], left),
        "decode": _decode(job.model, rungs["decode"], left, new),
    }
    return {stage: seconds(machine, effort) for stage, effort in efforts.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class Times:
    """What a plan says of time."""

    seconds: dict[str, float | None] | None
    """Stage → seconds, None for one that needs what was not measured; None when nothing was."""
    line: str
    """For people."""


def times_of(job: Job, rungs: Mapping[str, Rung], found: Sequence[Estimate]) -> Times:
    """How long what is left of a job takes, if this machine was measured. `rungs`: of `encode` and
    `decode`, those that they start on; `found`: an estimate for each medium of the job."""
    known = find_machine(job.device)
    if known.machine is None:
        return Times(seconds=None, line=f"unknown: {known.why}; {ADVICE}")
    each = stage_seconds(job, rungs, found, known.machine)
    said = [
        f"{stage} {'unknown' if s is None else ('up to ' * (stage == 'decode') + duration(s))}"
        for stage, s in each.items()
    ]
    line = f"{', '.join(said)} (captions of {job.config.max_new_tokens} tokens)"
    return Times(seconds=each, line=f"{line}; {known.why}" if known.why else line)


def to_do(job: Job, found: Sequence[Estimate]) -> list[ToDo]:
    """What is left, of each kind that there is; `found`: an estimate for each medium of the job."""
    return [made for kind in KINDS if (made := _of_kind(job, kind, found)) is not None]


def _of_kind(job: Job, kind: MediaKind, found: Sequence[Estimate]) -> ToDo | None:
    pairs = [(m, e) for m, e in zip(job.media, found, strict=True) if m.kind == kind and e.chunks]
    if not pairs:
        return None
    ledger = job.ledger
    uncut = [e for m, e in pairs if ledger.index(m) is None]
    open_tasks = [
        task
        for task in ledger.tasks([m for m, _ in pairs])
        if task.caption not in ledger.captions and task.features not in ledger.refused
    ]
    uncounted = sum(e.chunks for e in uncut)
    chunks = sum(e.chunks for _, e in pairs)
    frames = math.ceil(sum(e.frames for _, e in pairs) / chunks)
    middle = sorted((e for _, e in pairs), key=lambda e: math.prod(e.stored))[len(pairs) // 2]
    prompt = pairs[0][0].prompt
    return ToDo(
        load=load_of(job.model, kind, chunks, frames, middle.stored, middle.shown, prompt),
        pixels=sum(e.shown_frames * math.prod(e.shown) for e in uncut),
        frame_bytes=sum(e.frame_bytes for e in uncut),
        encode=uncounted + len({t.features for t in open_tasks} - ledger.features.keys()),
        decode=uncounted + len({t.caption for t in open_tasks}),
    )


def _frames(left: Sequence[ToDo]) -> Effort:
    pixels = {each.load.kind: each.pixels for each in left}
    return Effort(
        processes=int(any(pixels.values())),
        video_pixels=pixels.get("video", 0.0),
        picture_pixels=pixels.get("image", 0.0),
        written_bytes=sum(each.frame_bytes for each in left),
    )


def _encode(model: Model, rung: Rung, left: Sequence[ToDo]) -> Effort:
    half, settings = model.card.vision, model.vision
    passes = []
    for each in left:
        load, rows = each.load, each.load.rows("encode", rung.batch)
        if each.encode and model.card.route != "joint":
            passes.append(
                Pass(
                    precision=_precision(settings, rung),
                    flops=_encoder(model, settings, rows, load).flops,
                    tokens=MANY_TOKENS,
                    calls=half.linear_modules,
                    # A layer that is streamed is read once for all batches of a block.
                    moved_bytes=settings.weight_bytes / batches_a_block(rung, load, rows)
                    if rung.block
                    else 0,
                    times=each.encode / rows,
                )
            )
    return replace(
        _loading(half, settings, rung, any(each.encode for each in left), passes),
        prepared=sum(each.encode * _prepared(each.load) for each in left),
        written_bytes=sum(each.encode * each.load.feature_bytes for each in left),
    )


def _prepared(load: Load) -> float:
    """Numbers of pixel input of a chunk; of a large picture, those that making it smaller takes as
    long as."""
    return max(load.units, load.frame_bytes / MADE_OF if load.kind == "image" else 0)


def _decode(model: Model, rung: Rung, left: Sequence[ToDo], new: int) -> Effort:
    half, settings = model.card.language, model.language
    precision = _precision(settings, rung)
    passes = []
    for each in left:
        load, rows = each.load, each.load.rows("decode", rung.batch)
        work = _decoder(model, settings, rows, load)
        run = Pass(
            precision=precision,
            flops=work.flops,
            tokens=rows * load.tokens,
            calls=half.linear_modules,
            moved_bytes=rung.offload * settings.weight_bytes,
            times=each.decode / rows,
        )
        step = replace(run, flops=work.step_flops, tokens=rows, calls=run.calls + STEP_CALLS)
        passes += [run, step.often(run.times * new)]
    return _loading(half, settings, rung, any(each.decode for each in left), passes)


def _loading(
    half: HalfCard, settings: HalfSettings, rung: Rung, wanted: bool, passes: Sequence[Pass]
) -> Effort:
    if not wanted:
        return Effort()
    precision = _precision(settings, rung)
    made_small = precision in QUANTIZED and not half.stored_as
    return Effort(
        halves=1,
        passes=tuple(passes),
        quantized={precision: half.linear_parameters} if made_small else {},
        read_bytes=half.stored_bytes,
        device_bytes=settings.weight_bytes,
    )


def _precision(settings: HalfSettings, rung: Rung) -> str:
    """As machines are measured in."""
    name = rung.precision or settings.precision
    if name in (*DTYPES, *QUANTIZED):
        return name
    return "nf4" if name == "fp4" else SHORT.get(settings.dtype, "fp32")


def _encoder(model: Model, settings: HalfSettings, rows: int, load: Load) -> Expected:
    works = model.card.vision.works
    if works:
        return expected(works, load.kind, rows, load.units)
    each = BYTES.get(settings.dtype, 4)
    return encoder_by_dimensions(model.card.vision, each, rows, load.units, load.feature_bytes)


def _decoder(model: Model, settings: HalfSettings, rows: int, load: Load) -> Expected:
    works = model.card.language.works
    if works:
        return expected(works, load.kind, rows, load.tokens)
    return decoder_by_dimensions(model.card, BYTES.get(settings.dtype, 4), rows, load.tokens)
