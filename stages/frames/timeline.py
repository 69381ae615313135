"""The display times of the frames of a video, and the keyframes where decoding can begin."""

from array import array
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TypeAlias

import numpy as np
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

SHORT_SECONDS = 0.5
"""If the frames end this much before the stated end, the file was truncated."""
DEFAULT_RATE = Fraction(25)
"""Frames per second if a file states neither times nor a rate, as in raw streams."""
SLOWEST_SECONDS = 3600.0
"""A longer mean duration per frame means that the clock is wrong."""

VideoPacket: TypeAlias = "Packet[VideoStream]"
Stamp = Callable[[VideoFrame, int], int | None]
STAMPS: dict[str, Stamp] = {
    "pts": lambda frame, ordinal: frame.pts,
    "count": lambda frame, ordinal: ordinal,
}
"""Sources of the time of a frame, best first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Keyframes:
    """The keyframes where decoding can begin, in file order."""

    pts: "array[int]"
    """Presentation times in ticks, ascending."""
    dts: "array[int]"
    """Decoding times in the file's own ticks, for seeking."""
    ordinals: "array[int]"
    """Packet numbers in the stream, from 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Timeline:
    """The display times of the frames of a video."""

    pts: NDArray[np.int64]
    """Ticks of all frames, ascending and unique."""
    time_base: Fraction
    """Seconds per tick."""
    last_ticks: int
    """Duration of the last frame."""
    keyframes: Keyframes | None
    """None if seeking is unreliable."""
    stamp: str = "pts"
    """Key of STAMPS that identifies decoded frames."""
    demuxed: bool = True
    """Whether packets have the same times as their frames."""
    jumps: tuple[tuple[int, int], ...] = ()
    """(packet ordinal, ticks to add from there on) where the file's clock was reset."""
    disbelieved: frozenset[int] = frozenset()
    """Packets with wrong times, numbered from 0 in file order."""
    announced_seconds: float | None = None
    """Length that the file states, if any."""
    warnings: tuple[str, ...] = ()
    """Faults of the file, one sentence each."""

    @property
    def start(self) -> int:
        """Return the ticks of the first frame: time 0."""
        return int(self.pts[0])

    def seconds(self, ticks: int) -> float:
        """Convert ticks of the file's clock to seconds since the first frame."""
        return (ticks - self.start) * self.time_base.numerator / self.time_base.denominator

    @property
    def duration(self) -> float:
        """Return the seconds from the first frame to the end of the last."""
        return self.seconds(int(self.pts[-1]) + self.last_ticks)

    def with_plausible_rate(self) -> "Timeline":
        """Return itself, or a timeline at a default rate if each frame would last for hours."""
        if self.duration <= SLOWEST_SECONDS * len(self.pts):
            return self
        ticks = int(self.pts[-1]) + self.last_ticks - self.start
        return replace(
            self,
            time_base=len(self.pts) / (DEFAULT_RATE * ticks),
            announced_seconds=None,
            warnings=(
                *self.warnings,
                f"its clock is wrong; {DEFAULT_RATE} frames per second are assumed",
            ),
        )

    def starting_at(self, ticks: int) -> "Timeline":
        """Return the timeline without the frames before the first decodable one."""
        later = replace(self, pts=self.pts[np.searchsorted(self.pts, ticks) :])
        if self.announced_seconds is None:
            return later
        return replace(later, announced_seconds=self.announced_seconds - self.seconds(ticks))

    @property
    def is_short(self) -> bool:
        """Return whether the frames end before the stated end."""
        step = self.duration / len(self.pts)
        return (self.announced_seconds or 0.0) - self.duration > max(SHORT_SECONDS, 2 * step)

    def all_warnings(self) -> tuple[str, ...]:
        """Return the faults of the file, a missing end included."""
        if not self.is_short:
            return self.warnings
        missing = (
            f"truncated: its frames end at {self.duration:.2f} s of the stated "
            f"{self.announced_seconds:.2f} s; captioned up to there"
        )
        return (*self.warnings, missing)
