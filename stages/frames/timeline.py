"""The display times of the frames of a video, and the keyframes where decoding can begin."""

from array import array
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
CUT_OFF = "truncated: the file ends within its last frame, which is left out"
LONGEST_TICK_SECONDS = 3600
"""A longer tick means that the header's clock is wrong. Frames may stand longer."""

VideoPacket: TypeAlias = "Packet[VideoStream]"


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
    offset: float = 0.0
    """Seconds from time 0 to the first frame. Time 0 is the start of the file, which may begin with
    sound."""
    counted: bool = False
    """Whether decoded frames are identified by their number, not by their own times."""
    demuxed: bool = True
    """Whether packets have the same times as their frames."""
    jumps: tuple[tuple[int, int], ...] = ()
    """(packet ordinal, ticks to add from there on) where the file's clock was reset."""
    disbelieved: frozenset[int] = frozenset()
    """Packets with wrong times, numbered from 0 in file order."""
    announced_seconds: float | None = None
    """Length from the first frame to the end that the file states, if any."""
    warnings: tuple[str, ...] = ()
    """Faults of the file, one sentence each."""

    @property
    def start(self) -> int:
        """Return the ticks of the first frame."""
        return int(self.pts[0])

    def seconds(self, ticks: int) -> float:
        """Convert ticks of the file's clock to seconds since time 0."""
        return self.offset + self.since_first(ticks)

    @property
    def duration(self) -> float:
        """Return the seconds from the first frame to the end of the last."""
        return self.since_first(int(self.pts[-1]) + self.last_ticks)

    @property
    def end(self) -> float:
        """Return the end of the last frame in seconds since time 0."""
        return self.offset + self.duration

    def since_first(self, ticks: int) -> float:
        """Convert ticks of the file's clock to seconds since the first frame."""
        return (ticks - self.start) * self.time_base.numerator / self.time_base.denominator

    def ticks_of(self, frame: VideoFrame, ordinal: int) -> int | None:
        """Return the ticks of a decoded frame, which is the `ordinal`th; None if unknown."""
        if not self.counted:
            return frame.pts
        return int(self.pts[ordinal]) if ordinal < len(self.pts) else None

    def with_plausible_rate(self) -> "Timeline":
        """Return itself, or a timeline at a default rate if each tick would last for hours."""
        if self.time_base <= LONGEST_TICK_SECONDS:
            return self
        ticks = int(self.pts[-1]) + self.last_ticks - self.start
        return replace(
            self,
            time_base=len(self.pts) / (DEFAULT_RATE * ticks),
            offset=0.0,
            announced_seconds=None,
            warnings=(
                *self.warnings,
                f"its clock is wrong; {DEFAULT_RATE} frames per second are assumed",
            ),
        )

    def starting_at(self, ticks: int) -> "Timeline":
        """Return the timeline without the frames before the first decodable one."""
        pts = self.pts[np.searchsorted(self.pts, ticks) :]
        later = replace(self, pts=pts, offset=max(0.0, self.seconds(ticks)))
        if self.announced_seconds is None:
            return later
        return replace(later, announced_seconds=self.announced_seconds - self.since_first(ticks))

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
            f"truncated: its frames end at {self.end:.2f} s of the stated "
            f"{self.offset + (self.announced_seconds or 0.0):.2f} s; captioned up to there"
        )
        return (*(each for each in self.warnings if each != CUT_OFF), missing)
