"""The values that stages exchange."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Literal

from artifacts.disk.json_records import read_record
from artifacts.disk.json_shapes import Json
from artifacts.errors import UsageError
from artifacts.timecodes import RecordingClock

MediaKind = Literal["video", "image"]
Route = Literal["protocol", "replay", "splice", "joint", "dual", "served"]
Modality = Literal["image", "video"]
HalfName = Literal["vision", "audio", "language"]
"""Half of a captioning checkpoint, loaded without the others; a model that hears has `audio`."""
Part = Literal["vision", "audio", "language", "whole"]
"""Part of a checkpoint that one stage loads."""
WHOLE_SECONDS = 1e9
"""Chunk length in seconds that stands for a whole file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How frames of a video are sampled, and how the video is split into chunks."""

    chunk_seconds: float
    """Chunk length in seconds; the last chunk of a video may be shorter. With `shots`
    or `chapters`, the maximum length."""
    shots: bool = False
    """Whether chunks end at shot boundaries."""
    chapters: bool = False
    """Whether chunks end where chapters of the file do."""
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
    clip_frames: int = 0
    """Frames that a trainer takes of each chunk, which is as long as they are; 0: chunks have
    `chunk_seconds`."""
    clip_fps: float = 0.0
    """Frames per second at which it takes them."""
    clip_overlap: bool = False
    """Whether what is left of a file or shot is in one more chunk, its last one, which overlaps
    the one before; otherwise it is in none."""
    clip_own: bool = False
    """Whether a chunk of a slower video has that many of its own frames: its trainer repeats
    none."""

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
        return self.chunk_seconds >= WHOLE_SECONDS and not (self.shots or self.chapters)

    @property
    def key_fields(self) -> dict[str, Json]:
        """Return the fields that decide the frames: those of clips and of chapters only where there
        are some."""
        fields = values_of(self).items()
        left_out = tuple[str, ...]() if self.clip_frames else ("clip_",)
        left_out += () if self.chapters else ("chapters",)
        return {name: field for name, field in fields if not name.startswith(left_out)}

    @property
    def settings(self) -> dict[str, Json]:
        """Return the fields by name, for display and JSON."""
        whole = {"chunk_seconds": None, "whole": True} if self.whole else {}
        return {**self.key_fields, **whole}


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
    def from_frames(cls, meta: Mapping[str, Json]) -> "ChunkIndex":
        """Return the chunk that a record of frames holds, from the record's metadata."""
        return read_record(cls, {name: one for name, one in meta.items() if name != "damage"})


SHORTEST_GAP = 1e-6
"""Seconds that rounding does not make of nothing."""


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
    clock: RecordingClock = field(default_factory=RecordingClock)
    """What it says of when it was recorded."""

    def to_json(self) -> dict[str, Json]:
        nested = {"chunks": tuple(map(values_of, self.chunks)), "clock": values_of(self.clock)}
        return {**values_of(self), **nested}

    @property
    def all_warnings(self) -> tuple[str, ...]:
        return (*self.warnings, *self.damage)

    @property
    def end(self) -> float:
        """Return the end of the last frame in seconds since time 0."""
        return self.start + self.duration

    @property
    def gaps(self) -> list[tuple[float, float]]:
        """Return the spans, in seconds, that no chunk covers."""
        spans = sorted((chunk.start, chunk.end) for chunk in self.chunks)
        starts = [*(start for start, _ in spans), self.end]
        ends = [self.start, *accumulate((end for _, end in spans), max)]
        return [(e, s) for e, s in zip(ends, starts, strict=True) if s - e > SHORTEST_GAP]
