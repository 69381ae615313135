"""The values that stages exchange."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from artifacts.disk.json_shapes import read_record
from artifacts.errors import UsageError

MediaKind = Literal["video", "image"]
Route = Literal["protocol", "replay", "splice", "joint", "dual", "served"]
Modality = Literal["image", "video"]
Half = Literal["vision", "audio", "language"]
"""Half of a captioning checkpoint, loaded without the others; a model that hears has `audio`."""
Part = Literal["vision", "audio", "language", "whole"]
"""Part of a checkpoint that one stage loads."""
MAX_PIXELS = 1 << 27
"""Images with more pixels are stored at half their height and width, if possible."""
DIVISORS = (8, 4, 2)
"""Divisors of an image's sides at which a JPEG can be decoded."""
SPARE = 1.5
"""An image is decoded smaller only if it stays this many times larger than the model's input. With
less, vectors differ (docs/log.md)."""
LARGE_EDGE = 1 << 14
"""Pixels of a side that exceeds any model's input."""
WHOLE_SECONDS = 1e9
"""Chunk length in seconds that stands for a whole file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How frames of a video are sampled, and how the video is split into chunks."""

    chunk_seconds: float
    """Chunk length in seconds; the last chunk of a video may be shorter. With `shots`, the maximum
    length."""
    shots: bool = False
    """Whether chunks end at shot boundaries."""
    fps: float | None = None
    """Frames per second; exactly one of `fps` and `frames` is set."""
    frames: int | None = None
    """Frames per chunk, evenly spaced."""
    min_frames: int = 1
    """Minimum frames per chunk, if the file has them."""
    max_frames: int
    """Maximum frames per chunk; more are thinned evenly."""
    deinterlace: bool = True
    """Whether interlaced frames are stored without combs, or else as they are decoded."""

    def __post_init__(self) -> None:
        if (self.fps is None) == (self.frames is None):
            raise UsageError("give either --fps or --frames", hint="Leave one of them out")
        for name in ("chunk_seconds", "fps", "frames", "min_frames", "max_frames"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UsageError(f"{name} is {value}", hint="Give a number above 0")

    @property
    def whole(self) -> bool:
        """Return whether each file is one chunk."""
        return self.chunk_seconds >= WHOLE_SECONDS and not self.shots

    @property
    def settings(self) -> dict[str, Any]:
        """Return the fields by name, for display and JSON."""
        whole = {"chunk_seconds": None, "whole": True} if self.whole else {}
        return {**values_of(self), **whole}


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameFit:
    """The largest frame size that a model's processor uses. Frames are stored no larger, and images
    of the same final size are encoded together."""

    long_edges: tuple[tuple[float, int], ...] = ()
    """(height / width, long edge in pixels), sorted by the first; empty: frames keep their size."""

    shrinks: bool = False
    """Whether an image may be decoded smaller, if the model's input does not change."""

    def divisor(self, height: int, width: int) -> int:
        """Return the divisor of an image's sides during decoding."""
        seen = self.size(height, width)
        return next((by for by in DIVISORS if self.shrinks and _leaves(height, width, by, seen)), 1)

    def stored(self, height: int, width: int) -> tuple[int, int]:
        """Return the stored (height, width) of an image in pixels. It is the original size, so that
        only the model's processor resizes it, unless it may be decoded smaller."""
        if (by := self.divisor(height, width)) > 1:
            return round(height / by), round(width / by)
        return stored_size(height, width)

    @property
    def edge(self) -> int:
        """Return the side in pixels of the model's input for a large square image."""
        return self.size(LARGE_EDGE, LARGE_EDGE)[0]

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) in pixels that the model uses of a frame; never larger than
        the frame."""
        if not self.long_edges:
            return height, width
        aspect = height / width
        edges = self.long_edges
        above = next((i for i, (a, _) in enumerate(edges) if a >= aspect), len(edges) - 1)
        below = above if edges[above][0] <= aspect else max(above - 1, 0)
        (a0, e0), (a1, e1) = edges[below], edges[above]
        share = 0.0 if a1 <= a0 else min(1.0, (aspect - a0) / (a1 - a0))
        scale = min(1.0, math.ceil(e0 + (e1 - e0) * share) / max(height, width))
        return max(1, math.ceil(height * scale)), max(1, math.ceil(width * scale))


def _leaves(height: int, width: int, by: int, seen: tuple[int, int]) -> bool:
    """Return whether an image stays large enough when its sides are divided."""
    return height >= by * SPARE * seen[0] and width >= by * SPARE * seen[1]


def stored_size(height: int, width: int) -> tuple[int, int]:
    """Return the stored (height, width) of an image in pixels: the original size, so that only the
    model's processor resizes it, or half for very large images."""
    if height * width <= MAX_PIXELS:
        return height, width
    return (height + 1) // 2, (width + 1) // 2


def values_of(value: Any) -> dict[str, Any]:
    """Return the fields of a dataclass by name, without copying values. `asdict` copies, which took
    a tenth of a server's time per image."""
    return {name: getattr(value, name) for name in value.__slots__}


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkIndex:
    """One chunk of a medium: its time span and the frames that were sampled."""

    index: int
    """Position in the medium, from 0."""
    start: float
    """Start in seconds since the medium's time 0; 0 for an image."""
    end: float
    """End in seconds; 0 for an image."""
    times: tuple[float, ...]
    """Presentation time of each frame, in seconds since the medium's time 0."""
    height: int
    """Height of the stored frames in pixels, rotation applied."""
    width: int
    """Width of the stored frames in pixels, rotation applied."""
    warnings: tuple[str, ...] = ()
    """Damage of its own frames, one sentence each."""

    @classmethod
    def from_frames(cls, meta: Mapping[str, Any]) -> "ChunkIndex":
        """Return the chunk that a record of frames holds, from the record's metadata."""
        return read_record(cls, {name: one for name, one in meta.items() if name != "damage"})


@dataclass(frozen=True, kw_only=True, slots=True)
class MediaIndex:
    """The result of the frames stage for one media file."""

    kind: MediaKind
    height: int
    """Display height in pixels, rotation applied."""
    width: int
    """Display width in pixels, rotation applied."""
    duration: float
    """Seconds from the first frame to the end of the last one; 0 for an image."""
    start: float = 0.0
    """Seconds from time 0, the start of the file, to its first frame; sound may come before it."""
    chunks: tuple[ChunkIndex, ...]
    warnings: tuple[str, ...] = ()
    """What is wrong with the file as a whole, one sentence each."""
    damage: tuple[str, ...] = ()
    """The damage of all its chunks together, one sentence for each kind."""
    shrunk: int = 1
    """Divisor of its sides during decoding."""

    def to_json(self) -> dict[str, Any]:
        return {**values_of(self), "chunks": tuple(map(values_of, self.chunks))}

    @property
    def all_warnings(self) -> tuple[str, ...]:
        return (*self.warnings, *self.damage)

    @property
    def end(self) -> float:
        """Return the end of the last frame in seconds since time 0."""
        return self.start + self.duration
