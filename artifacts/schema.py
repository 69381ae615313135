"""The values that stages exchange."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from artifacts.errors import UsageError

MediaKind = Literal["video", "image"]
Route = Literal["protocol", "replay", "splice", "joint", "dual"]
Modality = Literal["image", "video"]
Half = Literal["vision", "language"]
"""Half of a checkpoint that captions: loaded without the other."""
Part = Literal["vision", "language", "whole"]
"""Part of any checkpoint: what one stage loads of it."""
MOST_PIXELS = 1 << 27
"""A picture of more is stored at half its height and width, where it can be read so."""
DIVISORS = (8, 4, 2)
"""Divisors of a picture's sides at which a JPEG can be decoded."""
SPARE = 1.5
"""Times as large as it is seen that a picture stays when it is decoded smaller; with less, vectors
are no longer alike (`benchmarks/decoding.py`)."""
SHRINKING = "decoded at a part of its sides"
"""What decides the frames of pictures that may be made smaller while they are decoded."""
LARGE_EDGE = 1 << 14
"""Pixels of a side of a picture that is larger than any input."""
WHOLE_SECONDS = 1e9
"""Seconds of a chunk that is a whole file, however long that is."""
WHOLE = "whole"
"""The last word of the keys of a picture that was stored smaller, when pictures were not stored as
they are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How frames of a video are sampled, and how the video is cut into chunks."""

    chunk_seconds: float
    """Length of a chunk in seconds; the last one of a video may be shorter. With `shots`, of the
    longest one."""
    shots: bool = False
    """Whether a chunk ends where a shot does."""
    fps: float | None = None
    """Frames a second; exactly one of `fps` and `frames` is set."""
    frames: int | None = None
    """Frames a chunk, evenly spaced."""
    min_frames: int = 1
    """At least so many frames a chunk, as far as the file has them."""
    max_frames: int
    """At most so many frames a chunk; more are thinned evenly."""
    last_frame: bool = False
    """Whether frames are spread from a chunk's first frame to its last, both taken."""

    def __post_init__(self) -> None:
        if (self.fps is None) == (self.frames is None):
            raise UsageError("give either --fps or --frames", hint="Leave one of them out")
        for name in ("chunk_seconds", "fps", "frames", "min_frames", "max_frames"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UsageError(f"{name} is {value}", hint="Give a number above 0")

    @property
    def whole(self) -> bool:
        """Return whether a file is one chunk, however long it is."""
        return self.chunk_seconds >= WHOLE_SECONDS and not self.shots

    @property
    def told(self) -> dict[str, Any]:
        """Return the fields by name, for people and programs."""
        whole = {"chunk_seconds": None, "whole": True} if self.whole else {}
        return {**self.decides, **whole}

    @property
    def decides(self) -> dict[str, Any]:
        """Return the fields that decide keys: `last_frame`, which came later, where it is set."""
        found = fields_of(self)
        return found if self.last_frame else {k: v for k, v in found.items() if k != "last_frame"}


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameFit:
    """The frame size that a model's processor keeps. Frames are stored no larger than this, and
    images of the same final size are encoded together."""

    long_edges: tuple[tuple[float, int], ...] = ()
    """(height / width, long edge in pixels), sorted by the first; empty: frames keep their size."""

    shrinks: bool = False
    """Whether a picture may be made smaller while it is decoded, as far as no model sees it."""

    def divisor(self, height: int, width: int) -> int:
        """Return by how much the sides of a picture are divided while it is decoded."""
        seen = self.size(height, width)
        return next((by for by in DIVISORS if self.shrinks and _leaves(height, width, by, seen)), 1)

    def stored(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) in pixels that a picture is stored at. It is its own, so that
        the model's processor, and nothing before it, makes it smaller; unless it may be smaller."""
        if (by := self.divisor(height, width)) > 1:
            return round(height / by), round(width / by)
        return picture_size(height, width)

    @property
    def edge(self) -> int:
        """Return the side in pixels at which a large square picture is seen."""
        return self.size(LARGE_EDGE, LARGE_EDGE)[0]

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) in pixels that a frame is worth; never larger than the
        frame."""
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
    """Return whether a picture is still large enough when its sides are divided."""
    return height >= by * SPARE * seen[0] and width >= by * SPARE * seen[1]


def picture_size(height: int, width: int) -> tuple[int, int]:
    """Return the (height, width) in pixels that a picture is stored at. It is its own, so that the
    model's processor, and nothing before it, makes it smaller."""
    if height * width <= MOST_PIXELS:
        return height, width
    return (height + 1) // 2, (width + 1) // 2


def fields_of(value: Any) -> dict[str, Any]:
    """Return the fields of one of these by their names. What is in them is not copied: of a picture
    that took a tenth of all the time that a server spends on it."""
    return {name: getattr(value, name) for name in value.__slots__}


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkIndex:
    """One chunk of a medium: its time span and the frames that were sampled."""

    index: int
    """Position in the medium, from 0."""
    start: float
    """Where the chunk begins, in seconds of the medium's own time; 0 for an image."""
    end: float
    """Where it ends, in seconds; 0 for an image."""
    times: tuple[float, ...]
    """Presentation time of each frame, in seconds from the medium's start."""
    height: int
    """Height of the stored frames in pixels, rotation applied."""
    width: int
    """Width of the stored frames in pixels, rotation applied."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MediaIndex:
    """The result of the frames stage for one media file."""

    kind: MediaKind
    height: int
    """Height in pixels as shown, rotation applied."""
    width: int
    """Width in pixels as shown, rotation applied."""
    duration: float
    """Seconds from the first frame to the end of the last one; 0 for an image."""
    chunks: tuple[ChunkIndex, ...]
    warnings: tuple[str, ...] = ()
    """Damage that was survived, one sentence each."""
    shrunk: int = 1
    """By how much its sides were divided while it was decoded."""

    def to_json(self) -> dict[str, Any]:
        found = {**fields_of(self), "chunks": tuple(map(fields_of, self.chunks))}
        if self.shrunk == 1:  # records are as they always were
            del found["shrunk"]
        return found

    def words(self, fit_image: FrameFit) -> tuple[str, ...]:
        """Return what the keys of all that is made of its chunks end with. Pictures larger than
        `fit_image` were once stored at that size: what was made of those pixels is another
        thing."""
        size = (self.height, self.width)
        if self.kind == "video" or self.shrunk > 1:
            return ()
        alike = size == fit_image.size(*size) == picture_size(*size)
        return () if alike else (WHOLE,)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "MediaIndex":
        size = {}
        if (
            value["kind"] == "image" and "shrunk" not in value
        ):  # written, maybe, when pictures were stored smaller
            stored = picture_size(value["height"], value["width"])
            size = dict(zip(("height", "width"), stored, strict=True))
        chunks = tuple(
            ChunkIndex(**{**c, **size, "times": tuple(c["times"])}) for c in value["chunks"]
        )
        return cls(**{**value, "chunks": chunks, "warnings": tuple(value["warnings"])})
