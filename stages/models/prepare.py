"""Turns frames into encoder inputs and, later, a prompt into decoder inputs, both by the
checkpoint's own processor; knows no family.

A processor computes pixels and, from them, what stands in the prompt for each picture. At encoding
both are done, and the second is kept. At decoding the processor runs as it is, but is handed what
was kept in place of computing pixels: no picture is needed any more, and any prompt will do.

A processor that cannot be handed it is run on black frames of the same number, size and times, and
its pixels are thrown away. Which of the two ways is right is found out by trying both on noise,
before anything is encoded; a processor for which neither gives what the pictures give is refused.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from artifacts.errors import UsageError
from artifacts.schema import MediaKind
from stages.models.clip import Clip, video_metadata
from stages.models.layout import PROBES, Layout, known, layout_of, noise, places, run, text_ids
from stages.models.processor import (
    is_picture,
    load_processor,
    placeholder_tokens,
    takes_images,
    takes_videos,
)
from stages.models.records import RowCount
from stages.models.turn import write

__all__ = [
    "Clip",
    "Prepared",
    "joined",
    "load_processor",
    "placeholder_tokens",
    "prepare",
    "rebuild",
    "render",
    "takes_videos",
    "video_metadata",
    "whole",
]
HOOKS = {"images": "_process_images", "videos": "_process_videos"}
"""Channel -> the processor's method that handles it."""
NEVER_KEPT = ("video_metadata",)
"""Outputs that a processor uses only while it writes the prompt."""
OUTLINE = "outline"
"""In a row's side: the sizes and times from which its prompt is written on black frames."""


class Row(Protocol):
    """What is kept of a row's media for its prompt."""

    @property
    def channel(self) -> str: ...
    @property
    def side(self) -> dict[str, Any]: ...
    @property
    def replacements(self) -> tuple[str, ...]: ...
    @property
    def count(self) -> RowCount: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """One chunk as the encoder takes it, and what its prompt will need."""

    inputs: dict[str, Any]
    """What the processor makes of the frames and not of the text."""
    channel: str
    """`images` or `videos`: as which the frames were taken."""
    side: dict[str, Any]
    """What the prompt needs besides `replacements`: those outputs of the image or video processor
    that are not pixels, or the frames' outline."""
    replacements: tuple[str, ...]
    """What stands in the prompt for each picture."""
    count: RowCount


def channel_of(processor: Any, kind: MediaKind) -> str:
    """As what a clip goes in: as a video where the processor takes any, else as images."""
    if kind == "video" and takes_videos(processor):
        return "videos"
    return "images" if takes_images(processor) else "videos"


def prepare(processor: Any, clip: Clip, prompt: str = "") -> Prepared:
    """Run the processor on one chunk's frames and keep all that it finds out. The prompt matters
    only to encoders that read it."""
    channel = channel_of(processor, clip.kind)
    layout = layout_of(processor, channel)
    keep = known(processor, f"route of {channel}", lambda: _route(processor, layout))
    return keep(processor, layout, _seen(layout, clip), prompt)


def rebuild(processor: Any, rows: Sequence[Row], prompts: Sequence[str]) -> dict[str, Any]:
    """What the processor gives for these prompts and the media that the rows were made of, besides
    pixels; padded on the left. All rows have the same channel."""
    channel = rows[0].channel
    if any(row.channel != channel for row in rows):
        raise ValueError("rows with images and rows with videos cannot share a batch")
    for prompt in prompts:
        _refuse_placeholders(processor, prompt)
    layout = layout_of(processor, channel)
    if all(OUTLINE in row.side for row in rows):
        clips = [Clip.blank(row.side[OUTLINE]) for row in rows]
        return _without_pictures(run(processor, layout, clips, prompts))
    replacements = [text for row in rows for text in row.replacements]
    side = {name: joined([row.side[name] for row in rows]) for name in rows[0].side}
    clips = [_speck(channel, row.count.media) for row in rows]
    with _answering(processor, HOOKS[channel], lambda *_, **__: (dict(side), [*replacements])):
        return _without_pictures(run(processor, layout, clips, prompts))


def whole(processor: Any, clips: Sequence[Clip], prompts: Sequence[str]) -> dict[str, Any]:
    """All that the processor gives for these media and prompts at once, pixels included: what a
    model takes that is not cut in two."""
    layout = layout_of(processor, channel_of(processor, clips[0].kind))
    for prompt in prompts:
        _refuse_placeholders(processor, prompt)
    return run(processor, layout, [_seen(layout, clip) for clip in clips], prompts)


def render(processor: Any, channel: str, media: int, prompt: str) -> str:
    """The text of one turn, media first, by the checkpoint's chat template if it has one."""
    return write(processor, layout_of(processor, channel).form, channel, media, prompt)


def _seen(layout: Layout, clip: Clip) -> Clip:
    """The clip's middle frame where a prompt takes one picture, else all of it."""
    return clip.middle() if layout.alone and len(clip.frames) > 1 else clip


Keep = Callable[[Any, Layout, Clip, str], Prepared]


def _route(processor: Any, layout: Layout) -> Keep:
    """The way of keeping that gives for a prompt without pictures what it gives with them."""
    clip = noise(layout.channel)
    wanted = _without_pictures(run(processor, layout, [clip] * 2, PROBES))
    for keep in (_keep_answer, _keep_outline):
        try:
            row = keep(processor, layout, clip, "")
            found = rebuild(processor, [row] * 2, PROBES)
        except Exception:  # a processor may fail in any way when it is handed what was kept
            continue
        if _same(found, wanted):
            return keep
    raise UsageError(
        f"{type(processor).__name__} writes into the prompt what only the pictures themselves say, "
        "so that no prompt can be written without them",
        hint="Use another model",
    )


def _keep_answer(processor: Any, layout: Layout, clip: Clip, prompt: str) -> Prepared:
    """Keep what the processor's own method answers."""
    kept: list[tuple[dict[str, Any], list[str]]] = []
    compute = getattr(processor, HOOKS[layout.channel])

    def remember(*args: Any, **kwargs: Any) -> Any:
        found, replacements = compute(*args, **kwargs)
        kept.append((dict(found), [*replacements]))
        return found, replacements

    with _answering(processor, HOOKS[layout.channel], remember):
        outputs = run(processor, layout, [clip], [prompt])
    ((found, replacements),) = kept
    return Prepared(
        inputs=_of_pictures(outputs),
        channel=layout.channel,
        side={n: v for n, v in found.items() if not is_picture(n) and n not in NEVER_KEPT},
        replacements=tuple(replacements),
        count=_count(processor, layout, clip, outputs),
    )


def _keep_outline(processor: Any, layout: Layout, clip: Clip, prompt: str) -> Prepared:
    """Keep sizes and times only."""
    outputs = run(processor, layout, [clip], [prompt])
    return Prepared(
        inputs=_of_pictures(outputs),
        channel=layout.channel,
        side={OUTLINE: clip.outline()},
        replacements=(),
        count=_count(processor, layout, clip, outputs),
    )


def _of_pictures(outputs: dict[str, Any]) -> dict[str, Any]:
    """The outputs without those that have a number for each token of the text."""
    shape = text_ids(outputs).shape
    return {
        name: value
        for name, value in outputs.items()
        if is_picture(name) or getattr(value, "shape", ())[:2] != shape
    }


def _without_pictures(outputs: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in outputs.items() if not is_picture(name)}


def _count(processor: Any, layout: Layout, clip: Clip, outputs: dict[str, Any]) -> RowCount:
    media = 1 if layout.channel == "videos" else len(clip.frames)
    return RowCount(tokens=places(processor, outputs, media), media=media)


def _same(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, dict):
        equal = found.keys() == wanted.keys()
        return equal and all(_same(found[name], wanted[name]) for name in wanted)
    if isinstance(wanted, torch.Tensor):
        return isinstance(found, torch.Tensor) and torch.equal(found, wanted)
    return repr(found) == repr(wanted)


def _speck(channel: str, media: int) -> Clip:
    """The smallest clip of so many media, for a processor that will not look at it."""
    count = media if channel == "images" else 1
    frames = np.zeros((count, 2, 2, 3), np.uint8)
    kind: Any = channel.removesuffix("s")
    return Clip(frames=frames, times=(0.0,) * count, seconds=0.0, kind=kind)


@contextlib.contextmanager
def _answering(processor: Any, method: str, answer: Callable[..., Any]) -> Iterator[None]:
    """Let this processor object, not its class, answer one of its methods otherwise."""
    processor.__dict__[method] = answer
    try:
        yield
    finally:
        del processor.__dict__[method]


def _refuse_placeholders(processor: Any, prompt: str) -> None:
    if found := [token for token in placeholder_tokens(processor) if token in prompt]:
        raise UsageError(
            f"the prompt holds {found[0]}, which this model reads as the place of a picture",
            hint="Leave it out: each picture is placed before the prompt",
        )


def joined(values: list[Any]) -> Any:
    """One output of several rows: tensors and sequences end to end, anything else if all agree."""
    if isinstance(values[0], torch.Tensor):
        return torch.cat(values)
    if isinstance(values[0], list | tuple):
        return list(itertools.chain.from_iterable(values))
    if any(value != values[0] for value in values):
        raise ValueError(f"outputs that differ between rows cannot be joined: {values}")
    return values[0]
