"""Finds out what sizes a checkpoint's processor makes of frames, by letting it resize some; knows
no family."""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from artifacts.schema import FrameFit, MediaKind
from stages.models.prepare import Clip, prepare, takes_videos

ASPECTS = (1.0, 9 / 16, 16 / 9, 3 / 4, 4 / 3, 1 / 2, 2.0, 1 / 3, 3.0)
"""Height / width of the probes; sizes between them are interpolated."""
LONG_EDGES = (1280, 3840)
"""Pixels of a probe's longer side; the second, that of 4K, when the first is not made smaller."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """What became of one kind of frames."""

    fit: FrameFit
    tokens: int
    """Placeholders a frame of a large square picture; 0 when it could not be found out."""


def probe(processor: Any, kind: MediaKind) -> Probe:
    """The sizes worth storing for images or for the frames of a video.

    A processor that keeps large frames as they are, or that does something else than resize, gives
    an empty fit: frames then keep their size.
    """
    edges: list[tuple[float, int]] = []
    tokens = 0
    for aspect in ASPECTS:
        for long_edge in LONG_EDGES:
            height, width = _shape(aspect, long_edge)
            try:
                produced, count = _run(processor, kind, height, width)
            except Exception:  # a processor may refuse a probe in any way; real frames will tell
                return Probe(fit=FrameFit(), tokens=tokens)
            tokens = tokens or count
            scale = max((max(h / height, w / width) for h, w in produced), default=1.0)
            if scale < 1:
                edges.append((aspect, math.ceil(scale * long_edge - 1e-6)))
                break
        else:
            return Probe(fit=FrameFit(), tokens=tokens)
    return Probe(fit=FrameFit(long_edges=tuple(sorted(edges))), tokens=tokens)


def _shape(aspect: float, long_edge: int) -> tuple[int, int]:
    """Height and width in pixels."""
    if aspect >= 1:
        return long_edge, max(1, round(long_edge / aspect))
    return max(1, round(long_edge * aspect)), long_edge


def _run(
    processor: Any, kind: MediaKind, height: int, width: int
) -> tuple[list[tuple[int, int]], int]:
    """Sizes (height, width) in pixels that the processor resized a probe to, and its placeholders a
    frame."""
    count = 2 if kind == "video" and takes_videos(processor) else 1
    frames = np.zeros((count, height, width, 3), np.uint8)
    times = tuple(float(index) for index in range(count))
    clip = Clip(frames=frames, times=times, seconds=float(count), kind=kind)
    which = "video_processor" if count == 2 else "image_processor"
    with _watching(getattr(processor, which)) as produced:
        prepared = prepare(processor, clip)
    return produced, math.ceil(prepared.count.tokens / count)


@contextlib.contextmanager
def _watching(part: Any) -> Iterator[list[tuple[int, int]]]:
    """The (height, width) that this image or video processor resizes to, while it works."""
    produced: list[tuple[int, int]] = []
    resize = part.resize

    def watched(*args: Any, **kwargs: Any) -> Any:
        result = resize(*args, **kwargs)
        produced.append((int(result.shape[-2]), int(result.shape[-1])))
        return result

    part.__dict__["resize"] = watched
    try:
        yield produced
    finally:
        del part.__dict__["resize"]
