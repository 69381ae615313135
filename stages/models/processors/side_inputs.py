"""Finds by testing what a chunk's prompt will need later, and stores it with the chunk.

Three ways are tested on noise. The first whose prompt without images equals the processor's output
with images is used:

    answers   store the output of the processor's own image method; it returns the same again
    shapes    the same, with empty tensors in place of the pixels
    outline   store sizes and times; run the processor on black frames and drop their pixels
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from artifacts.errors import UsageError
from stages.models.halves.model_class import SOUNDS, USE_SOUND
from stages.models.halves.records import (
    OUTLINE,
    SOUND,
    CannotSplit,
    FeatureRecord,
    RowCount,
    merge_blank,
    merge_rows,
)
from stages.models.processors.blank_clips import Clip
from stages.models.processors.input_layout import PROBES, channels_of, layout_of, noise
from stages.models.processors.known import known
from stages.models.processors.loading import is_image_output
from stages.models.processors.processor_calls import (
    INTERLEAVED,
    Layout,
    joined,
    places,
    run,
    same,
    text_ids,
)
from stages.models.processors.sound import (
    DTYPE,
    HOOK,
    ONES,
    PROBE_SECONDS,
    WIDTH,
    answering,
    answering_sound,
    mask_of,
    remembered,
    sound_layout,
    sound_noise,
    sound_places,
    sound_rate,
)
from stages.models.profile import HearingProfile
from stages.models.protocols import Processor, Tree
from stages.process.exit_diagnosis import out_of_memory

HOOKS = {"images": "_process_images", "videos": "_process_videos"}
"""Channel → the processor's method that handles it."""
NEVER_KEPT = ("video_metadata",)
"""Outputs that a processor uses only while it writes the prompt."""
LARGE = 512
"""Longer side of an image in pixels above which a smaller image is tried in its place."""
SHAPES = "shapes"
"""Key in a row's side inputs: the shapes of its pixels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """One chunk, or its sound, as encoder input, with what its prompt will need."""

    inputs: dict[str, Any]
    """The processor's outputs that depend on the frames and not on the text."""
    channel: str
    """`images` or `videos`: how the frames were passed; `audio`: it is of a sound."""
    side: dict[str, Any]
    """Outputs of the image or video processor, besides pixels, that the prompt needs in addition to
    `replacements`, and the pixels' shapes; or the frames' outline."""
    replacements: tuple[str, ...]
    """Text in the prompt for each image."""
    count: RowCount
    heard: FeatureRecord | None = None
    """The record of the row's sound."""


Row = Prepared | FeatureRecord
"""What is kept of a row's media for its prompt."""
Keep = Callable[[Processor, Layout, Clip, str], Prepared]


def side_inputs_keeper(processor: Processor, layout: Layout) -> Keep:
    """Find the function that keeps what a row needs. Raises UsageError if none works."""
    clip = noise(layout.channel)
    expected = without_images(run(processor, layout, [clip] * 2, PROBES))
    for keep in (keep_answers, keep_shapes, keep_outline):
        try:
            row = keep(processor, layout, clip, "")
            restored = restore(processor, layout, [row] * 2, PROBES)
        except Exception as error:  # a processor may fail in any way on what was kept
            if out_of_memory(error):
                raise
            continue
        if same(restored, expected):
            return keep
    raise _unseparable(processor)


def side_by_side(rows: Sequence[FeatureRecord]) -> FeatureRecord:
    """Return the record of one prompt with the images of these rows, in their order. Raises
    UsageError if the model cannot have them together."""
    first = rows[0]
    if len(rows) == 1:
        return first
    try:
        keys = {row.joins_with(number) for number, row in enumerate(rows)}
        if first.channel != "images" or len(keys) > 1:
            raise ValueError("rows that differ")
        plain = [name for name in first.side if name not in (SHAPES, OUTLINE)]
        side = {name: joined([row.side[name] for row in rows]) for name in plain}
        if SHAPES in first.side:
            shapes = [replace(row, blank=row.side[SHAPES]) for row in rows]
            side[SHAPES] = merge_blank(shapes)
        if OUTLINE in first.side:
            side[OUTLINE] = _outlines_joined([row.side[OUTLINE] for row in rows])
        features = merge_rows(rows)
    except (ValueError, CannotSplit) as error:
        raise UsageError(
            "this model takes images of one prompt only in one size",
            hint="Scale them to the same size, or send one",
        ) from error
    counts = [row.count for row in rows]
    return replace(
        first,
        features=features,
        side=side,
        replacements=tuple(text for row in rows for text in row.replacements),
        count=RowCount(tokens=sum(c.tokens for c in counts), media=sum(c.media for c in counts)),
        blank=merge_blank(rows),
    )


def _outlines_joined(outlines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    first, sizes = outlines[0], {tuple(outline["shape"][1:]) for outline in outlines}
    if len(sizes) > 1:
        raise ValueError("images of different sizes")
    times = [time for outline in outlines for time in outline["times"]]
    return {**first, "shape": [len(times), *first["shape"][1:]], "times": times}


def check_outline(processor: Processor, layout: Layout, clip: Clip, row: Prepared) -> None:
    """Check that a real clip gives the same text as black frames. Text in an image may change the
    prompt, which noise does not show. Raises UsageError."""
    expected = without_images(run(processor, layout, [clip], PROBES[:1]))
    if not same(restore(processor, layout, [row], PROBES[:1]), expected):
        raise _unseparable(processor)


def restore(
    processor: Processor, layout: Layout, rows: Sequence[Row], prompts: Sequence[str]
) -> dict[str, Any]:
    """Return the outputs besides pixels and sound for these prompts and the kept media."""
    heard = [row.heard for row in rows if row.heard is not None]
    if heard:
        layout = sound_layout(processor, layout)
    with answering_sound(processor, heard):
        outputs = _restored(processor, layout, rows, prompts)
    return {**outputs, USE_SOUND: True} if layout.sound == INTERLEAVED else outputs


def _restored(
    processor: Processor, layout: Layout, rows: Sequence[Row], prompts: Sequence[str]
) -> dict[str, Any]:
    if OUTLINE in rows[0].side:
        clips = [_with_sound(layout, Clip.blank(row.side[OUTLINE])) for row in rows]
        return without_images(run(processor, layout, clips, prompts))
    if not layout.batched and len(rows) > 1:
        raise ValueError("a processor that takes one prompt per call cannot be run without images")
    names = [name for name in rows[0].side if name != SHAPES]
    side = {name: joined([row.side[name] for row in rows]) for name in names}
    for name in rows[0].side.get(SHAPES, ()):
        side[name] = _nothing([row.side[SHAPES][name] for row in rows])
    replacements = [text for row in rows for text in row.replacements]
    clips = [_with_sound(layout, _smallest_clip(layout.channel, row.count.media)) for row in rows]

    def answer(*_: Any, **kwargs: Any) -> tuple[dict[str, Any], list[str]]:
        if layout.sound != INTERLEAVED:
            return dict(side), [*replacements]
        return dict(side), [
            processor.replace_video_token(side, video, **kwargs) for video in range(len(rows))
        ]

    with answering(processor, HOOKS[layout.channel], answer):
        return without_images(run(processor, layout, clips, prompts))


def _with_sound(layout: Layout, clip: Clip) -> Clip:
    """Return a clip with a sound that no processor reads, if the layout has a place for it."""
    return replace(clip, sound=np.zeros(1, np.float32)) if layout.sound else clip


def keep_answers(processor: Processor, layout: Layout, clip: Clip, prompt: str) -> Prepared:
    return _answers(processor, layout, clip, prompt)[0]


def keep_shapes(processor: Processor, layout: Layout, clip: Clip, prompt: str) -> Prepared:
    row, returned = _answers(processor, layout, clip, prompt)
    shapes = {name: list(value.shape) for name, value in returned.items() if is_image_output(name)}
    return replace(row, side={**row.side, SHAPES: shapes})


def keep_outline(processor: Processor, layout: Layout, clip: Clip, prompt: str) -> Prepared:
    outputs = run(processor, layout, [clip], [prompt])
    return Prepared(
        inputs=_image_outputs(outputs),
        channel=layout.channel,
        side={OUTLINE: _outline(processor, layout, clip, prompt, outputs)},
        replacements=(),
        count=_count(processor, layout, clip, outputs),
    )


def _outline(
    processor: Processor, layout: Layout, clip: Clip, prompt: str, outputs: dict[str, Any]
) -> dict[str, Any]:
    """Return the clip's outline; for a large image a smaller outline, if it gives the same prompt.
    Otherwise the processor would resize as many black pixels for each caption."""
    outline = clip.outline()
    count, *size = outline["shape"]
    scale = LARGE / max(size)
    if clip.kind == "video" or scale >= 1:
        return outline
    small = {**outline, "shape": [count, *(math.ceil(side * scale) for side in size)]}
    try:
        reduced = run(processor, layout, [Clip.blank(small)], [prompt])
    except Exception as error:  # a processor may fail in any way
        if out_of_memory(error):
            raise
        return outline
    return small if same(without_images(reduced), without_images(outputs)) else outline


def _answers(
    processor: Processor, layout: Layout, clip: Clip, prompt: str
) -> tuple[Prepared, dict[str, Any]]:
    """Return the row, and everything that the processor's method returned."""
    with remembered(processor, HOOKS[layout.channel]) as kept:
        outputs = run(processor, layout, [clip], [prompt])
    ((returned, replacements),) = kept
    side = {n: v for n, v in returned.items() if not is_image_output(n) and n not in NEVER_KEPT}
    row = Prepared(
        inputs=_image_outputs(outputs),
        channel=layout.channel,
        side=side,
        replacements=tuple(replacements),
        count=_count(processor, layout, clip, outputs),
    )
    return row, returned


def without_images(outputs: Mapping[str, Tree]) -> dict[str, Tree]:
    return {name: value for name, value in outputs.items() if not is_image_output(name)}


def _nothing(shapes: list[list[int]]) -> torch.Tensor:
    """Make a tensor with the pixel shape of several rows that uses no memory."""
    rest = [max(lengths) for lengths in zip(*(shape[1:] for shape in shapes), strict=True)]
    return torch.zeros(()).expand(sum(shape[0] for shape in shapes), *rest)


def _image_outputs(outputs: Mapping[str, Tree]) -> dict[str, Tree]:
    """Return the outputs without those that have one number per text token."""
    shape = text_ids(outputs).shape
    return {
        name: value
        for name, value in outputs.items()
        if is_image_output(name) or getattr(value, "shape", ())[:2] != shape
    }


def _count(processor: Processor, layout: Layout, clip: Clip, outputs: dict[str, Any]) -> RowCount:
    media = 1 if layout.channel == "videos" else len(clip.frames)
    return RowCount(tokens=places(processor, outputs, media), media=media)


def _smallest_clip(channel: str, media: int) -> Clip:
    """Make the smallest clip of `media` media, for a processor that does not read its pixels."""
    count = media if channel == "images" else 1
    frames = np.zeros((count, 2, 2, 3), np.uint8)
    kind: Any = channel.removesuffix("s")
    return Clip(frames=frames, times=(0.0,) * count, seconds=0.0, kind=kind)


def _unseparable(processor: Processor) -> UsageError:
    return UsageError(
        f"{type(processor).__name__} writes into the prompt what only the images show, so no "
        "prompt can be written without them",
        hint="Use another model",
    )


def prepare_sound(processor: Processor, samples: NDArray[np.float32]) -> Prepared:
    """Run the processor on the sound of one row: mono samples from -1 to 1 at its rate."""
    width = known(processor, "width of padded sound", lambda: _padded_width(processor))
    return _prepared(processor, samples, width)


def _prepared(processor: Processor, samples: NDArray[np.float32], width: int = 0) -> Prepared:
    """Run the processor. With a `width`, its mask has that width in the record, and the sound is
    padded only until no spectrum of it reaches the end, where they reflect what is before it."""
    channel = channels_of(processor)[0]
    extractor = processor._audio_processor
    padding = {}
    if width:
        padding["max_length"] = min(len(samples) + extractor.n_fft, extractor.n_samples)
    layout = sound_layout(processor, layout_of(processor, channel))
    clip = replace(noise(channel), sound=samples)
    with remembered(processor, HOOK, **padding) as kept:
        outputs = run(processor, layout, [clip], PROBES[:1])
    ((returned, replacements),) = kept
    return Prepared(
        inputs={name: value for name, value in outputs.items() if name in returned},
        channel=SOUND,
        side={name: _kept(value, width) for name, value in returned.items() if name not in SOUNDS},
        replacements=tuple(replacements),
        count=RowCount(tokens=sound_places(processor, outputs), media=1),
    )


def _kept(value: Any, width: int) -> Any:
    """Return a mask of one row as its lengths, and any other value as it is. `width`: that of the
    mask; 0: its own."""
    if not isinstance(value, torch.Tensor) or value.ndim != 2 or len(value) != 1:
        return value
    ones, own = int((value != 0).sum()), value.shape[1]
    mask = {ONES: ones, WIDTH: width or own, DTYPE: str(value.dtype).removeprefix("torch.")}
    return mask if torch.equal(mask_of(mask, own), value) else value


def _padded_width(processor: Processor) -> int:
    """Return the spectra in the mask of every sound, if the processor pads each to its longest one
    and gives the same with less padding: that of Qwen2.5-Omni pads to 300 s, which took 0.3 s of a
    core. Else 0."""
    sound = sound_noise(processor, PROBE_SECONDS[0])
    try:
        row = _prepared(processor, sound)
        ((ones, width),) = ((m[ONES], m[WIDTH]) for m in row.side.values() if isinstance(m, dict))
        less = _prepared(processor, sound, width)
    except Exception as error:  # most have no such option, and a processor may fail in any way
        if out_of_memory(error):
            raise
        return 0
    pairs = [(value, less.inputs[name]) for name, value in row.inputs.items()]
    is_padded = all(other.shape[-1] < value.shape[-1] == width for value, other in pairs)
    is_same = all(torch.equal(value[..., :ones], other[..., :ones]) for value, other in pairs)
    return width if is_padded and is_same and same(less.side, row.side) else 0


def hearing_profile(processor: Processor) -> HearingProfile | None:
    """Return what planning needs of a processor's sound; None if it takes none beside pictures."""
    if not (rate := sound_rate(processor)):
        return None
    try:
        layouts = [
            sound_layout(processor, layout_of(processor, name)) for name in channels_of(processor)
        ]
        few, more = (_tokens(processor, seconds) for seconds in PROBE_SECONDS)
        longest = _longest(processor, rate)
    except Exception as error:  # a processor may fail in any way
        if out_of_memory(error):
            raise
        return None
    per_second = (more - few) / (PROBE_SECONDS[1] - PROBE_SECONDS[0])
    return HearingProfile(
        rate=rate,
        tokens_per_second=per_second,
        tokens_per_sound=max(0, few - int(PROBE_SECONDS[0] * per_second)),
        max_seconds=longest,
        interleaved=any(layout.sound == INTERLEAVED for layout in layouts),
    )


def _longest(processor: Processor, rate: int) -> float:
    """Return the longest sound in seconds that the processor passes on; 0: any."""
    extractor = processor._audio_processor
    stated = inspect.signature(type(extractor).__call__).parameters.get("max_length")
    samples = getattr(extractor, "n_samples", None if stated is None else stated.default)
    if not isinstance(samples, int) or samples < rate:
        return 0.0
    row = prepare_sound(processor, sound_noise(processor, PROBE_SECONDS[0]))
    is_window = any(
        isinstance(kept, dict) and kept[WIDTH] >= samples // getattr(extractor, "hop_length", 1)
        for kept in row.side.values()
    )
    seconds = samples / rate
    if is_window or _tokens(processor, seconds) >= _tokens(processor, seconds + 1.0):
        return seconds
    return 0.0


def _tokens(processor: Processor, seconds: float) -> int:
    return prepare_sound(processor, sound_noise(processor, seconds)).count.tokens
