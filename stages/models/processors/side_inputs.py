"""Finds by testing what a chunk's prompt will need later, and stores it with the chunk.

Three ways are tested on noise. The first whose prompt without images equals the processor's output
with images is used:

    answers   store the output of the processor's own image method; it returns the same again
    shapes    the same, with empty tensors in place of the pixels
    outline   store sizes and times; run the processor on black frames and drop their pixels
"""

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch

from artifacts.errors import UsageError
from stages.models.halves.records import OUTLINE, FeatureRecord, RowCount
from stages.models.halves.routes import USE_SOUND
from stages.models.processors.input_layout import PROBES, noise
from stages.models.processors.loading import Clip, is_image_output
from stages.models.processors.processor_calls import (
    INTERLEAVED,
    Layout,
    places,
    run,
    same,
    text_ids,
)
from stages.models.processors.sound import answering_sound, sound_layout
from stages.process.exit_diagnosis import out_of_memory

HOOKS = {"images": "_process_images", "videos": "_process_videos"}
"""Channel → the processor's method that handles it."""
NEVER_KEPT = ("video_metadata",)
"""Outputs that a processor uses only while it writes the prompt."""
LARGE = 512
"""Longer side of an image in pixels above which a smaller image is tried in its place."""
SHAPES = "shapes"
"""Key in a row's side inputs: the shapes of its pixels."""


class Row(Protocol):
    """Everything that is kept of a row's media for its prompt."""

    @property
    def channel(self) -> str: ...
    @property
    def side(self) -> dict[str, Any]: ...
    @property
    def replacements(self) -> tuple[str, ...]: ...
    @property
    def count(self) -> RowCount: ...
    @property
    def heard(self) -> FeatureRecord | None: ...


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


Keep = Callable[[Any, Layout, Clip, str], Prepared]


def side_inputs_keeper(processor: Any, layout: Layout) -> Keep:
    """Find the function that keeps what a row needs. Raises UsageError if none works."""
    clip = noise(layout.channel)
    expected = without_images(run(processor, layout, [clip] * 2, PROBES))
    for keep in (keep_answers, keep_shapes, keep_outline):
        try:
            row = keep(processor, layout, clip, "")
            found = restore(processor, layout, [row] * 2, PROBES)
        except Exception as error:  # a processor may fail in any way on what was kept
            if out_of_memory(error):
                raise
            continue
        if same(found, expected):
            return keep
    raise _unseparable(processor)


def check_outline(processor: Any, layout: Layout, clip: Clip, row: Prepared) -> None:
    """Check that a real clip gives the same text as black frames. Text in an image may change the
    prompt, which noise does not show. Raises UsageError."""
    expected = without_images(run(processor, layout, [clip], PROBES[:1]))
    if not same(restore(processor, layout, [row], PROBES[:1]), expected):
        raise _unseparable(processor)


def restore(
    processor: Any, layout: Layout, rows: Sequence[Row], prompts: Sequence[str]
) -> dict[str, Any]:
    """Return the outputs besides pixels and sound for these prompts and the kept media."""
    heard = [row.heard for row in rows if row.heard is not None]
    if heard:
        layout = sound_layout(processor, layout)
    with answering_sound(processor, heard):
        outputs = _restored(processor, layout, rows, prompts)
    return {**outputs, USE_SOUND: True} if layout.sound == INTERLEAVED else outputs


def _restored(
    processor: Any, layout: Layout, rows: Sequence[Row], prompts: Sequence[str]
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

    with _answering(processor, layout.channel, answer):
        return without_images(run(processor, layout, clips, prompts))


def _with_sound(layout: Layout, clip: Clip) -> Clip:
    """Return a clip with a sound that no processor reads, if the layout has a place for it."""
    return replace(clip, sound=np.zeros(1, np.float32)) if layout.sound else clip


def keep_answers(processor: Any, layout: Layout, clip: Clip, prompt: str) -> Prepared:
    return _answers(processor, layout, clip, prompt)[0]


def keep_shapes(processor: Any, layout: Layout, clip: Clip, prompt: str) -> Prepared:
    row, found = _answers(processor, layout, clip, prompt)
    shapes = {name: list(value.shape) for name, value in found.items() if is_image_output(name)}
    return replace(row, side={**row.side, SHAPES: shapes})


def keep_outline(processor: Any, layout: Layout, clip: Clip, prompt: str) -> Prepared:
    outputs = run(processor, layout, [clip], [prompt])
    return Prepared(
        inputs=_image_outputs(outputs),
        channel=layout.channel,
        side={OUTLINE: _outline(processor, layout, clip, prompt, outputs)},
        replacements=(),
        count=_count(processor, layout, clip, outputs),
    )


def _outline(
    processor: Any, layout: Layout, clip: Clip, prompt: str, outputs: dict[str, Any]
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
        found = run(processor, layout, [Clip.blank(small)], [prompt])
    except Exception as error:  # a processor may fail in any way
        if out_of_memory(error):
            raise
        return outline
    return small if same(without_images(found), without_images(outputs)) else outline


def _answers(
    processor: Any, layout: Layout, clip: Clip, prompt: str
) -> tuple[Prepared, dict[str, Any]]:
    """Return the row, and everything that the processor's method returned."""
    kept: list[tuple[dict[str, Any], list[str]]] = []
    compute = getattr(processor, HOOKS[layout.channel])

    def remember(*args: Any, **kwargs: Any) -> Any:
        found, replacements = compute(*args, **kwargs)
        kept.append((dict(found), [*replacements]))
        return found, replacements

    with _answering(processor, layout.channel, remember):
        outputs = run(processor, layout, [clip], [prompt])
    ((found, replacements),) = kept
    side = {n: v for n, v in found.items() if not is_image_output(n) and n not in NEVER_KEPT}
    row = Prepared(
        inputs=_image_outputs(outputs),
        channel=layout.channel,
        side=side,
        replacements=tuple(replacements),
        count=_count(processor, layout, clip, outputs),
    )
    return row, found


def without_images(outputs: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in outputs.items() if not is_image_output(name)}


def joined(values: list[Any]) -> Any:
    """Join one output of several rows: concatenate tensors and sequences; others must be equal."""
    if isinstance(values[0], torch.Tensor):
        return torch.cat(values)
    if isinstance(values[0], list | tuple):
        return list(itertools.chain.from_iterable(values))
    if any(value != values[0] for value in values):
        raise ValueError(f"outputs that differ between rows cannot be joined: {values}")
    return values[0]


def _nothing(shapes: list[list[int]]) -> torch.Tensor:
    """Make a tensor with the pixel shape of several rows that uses no memory."""
    rest = [max(lengths) for lengths in zip(*(shape[1:] for shape in shapes), strict=True)]
    return torch.zeros(()).expand(sum(shape[0] for shape in shapes), *rest)


def _image_outputs(outputs: dict[str, Any]) -> dict[str, Any]:
    """Return the outputs without those that have one number per text token."""
    shape = text_ids(outputs).shape
    return {
        name: value
        for name, value in outputs.items()
        if is_image_output(name) or getattr(value, "shape", ())[:2] != shape
    }


def _count(processor: Any, layout: Layout, clip: Clip, outputs: dict[str, Any]) -> RowCount:
    media = 1 if layout.channel == "videos" else len(clip.frames)
    return RowCount(tokens=places(processor, outputs, media), media=media)


def _smallest_clip(channel: str, media: int) -> Clip:
    """Make the smallest clip of `media` media, for a processor that does not read its pixels."""
    count = media if channel == "images" else 1
    frames = np.zeros((count, 2, 2, 3), np.uint8)
    kind: Any = channel.removesuffix("s")
    return Clip(frames=frames, times=(0.0,) * count, seconds=0.0, kind=kind)


@contextlib.contextmanager
def _answering(processor: Any, channel: str, answer: Callable[..., Any]) -> Iterator[None]:
    """Replace the media method of this processor object, not of its class, inside the block."""
    processor.__dict__[HOOKS[channel]] = answer
    try:
        yield
    finally:
        del processor.__dict__[HOOKS[channel]]


def _unseparable(processor: Any) -> UsageError:
    return UsageError(
        f"{type(processor).__name__} writes into the prompt what only the images show, so no "
        "prompt can be written without them",
        hint="Use another model",
    )
