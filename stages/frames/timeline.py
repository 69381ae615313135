"""The times at which a video's frames are shown, and the keyframes where decoding can begin."""

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
"""Frames that end this much before the announced end mean that the file was cut short."""
DEFAULT_RATE = Fraction(25)
"""Frames a second where a file states neither times nor a rate, as raw streams do."""
SLOWEST_SECONDS = 3600.0
"""Frames that stand longer than this, one with another, come of a clock that is broken."""

VideoPacket: TypeAlias = "Packet[VideoStream]"
Stamp = Callable[[VideoFrame, int], int | None]
STAMPS: dict[str, Stamp] = {
    "pts": lambda frame, ordinal: frame.pts,
    "count": lambda frame, ordinal: ordinal,
}
"""Ways to tell a frame's time, best first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Keyframes:
    """The keyframes where decoding can begin, in file order."""

    pts: "array[int]"
    """Presentation time of each, in ticks of the stream, ascending."""
    dts: "array[int]"
    """Decoding time of each, in the file's own ticks: what to seek to."""
    ordinals: "array[int]"
    """Which packet of the stream each is, counted from 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Timeline:
    """The times at which the frames of a video are shown."""

    pts: NDArray[np.int64]
    """Ticks of every frame, ascending, without repeats."""
    time_base: Fraction
    """Seconds a tick."""
    last_ticks: int
    """How long the last frame stands."""
    keyframes: Keyframes | None
    """None where seeking cannot be trusted."""
    stamp: str = "pts"
    """The entry of STAMPS by which decoded frames are told apart."""
    demuxed: bool = True
    """Whether packets carry the same times as the frames in them."""
    jumps: tuple[tuple[int, int], ...] = ()
    """(packet ordinal, ticks to add from there on) where the file's clock was set anew."""
    disbelieved: frozenset[int] = frozenset()
    """Packets, counted from 0 in the order of the file, whose time cannot be right."""
    announced_seconds: float | None = None
    """Length that the file states, if it does."""
    warnings: tuple[str, ...] = ()
    """Faults of the file, one sentence each."""

    @property
    def start(self) -> int:
        """Return ticks of the first frame: time 0."""
        return int(self.pts[0])

    def seconds(self, ticks: int) -> float:
        """Turn ticks of the file's clock into seconds since the first frame."""
        return (ticks - self.start) * self.time_base.numerator / self.time_base.denominator

    @property
    def duration(self) -> float:
        """Return seconds from the first frame to the end of the last."""
        return self.seconds(int(self.pts[-1]) + self.last_ticks)

    def believable(self) -> "Timeline":
        """Return itself, or one at a usual rate where each frame would stand for hours."""
        if self.duration <= SLOWEST_SECONDS * len(self.pts):
            return self
        ticks = int(self.pts[-1]) + self.last_ticks - self.start
        return replace(
            self,
            time_base=len(self.pts) / (DEFAULT_RATE * ticks),
            announced_seconds=None,
            warnings=(
                *self.warnings,
                f"its clock cannot be right; {DEFAULT_RATE} frames a second are assumed",
            ),
        )

    def starting_at(self, ticks: int) -> "Timeline":
        """Return it without the frames before the first one that can be decoded."""
        later = replace(self, pts=self.pts[np.searchsorted(self.pts, ticks) :])
        if self.announced_seconds is None:
            return later
        return replace(later, announced_seconds=self.announced_seconds - self.seconds(ticks))

    @property
    def is_short(self) -> bool:
        """Return whether frames end before the file says they do."""
        step = self.duration / len(self.pts)
        return (self.announced_seconds or 0.0) - self.duration > max(SHORT_SECONDS, 2 * step)

    def all_warnings(self) -> tuple[str, ...]:
        """Return what is wrong with the file, its missing end included."""
        if not self.is_short:
            return self.warnings
        missing = (
            f"cut short: its frames end at {self.duration:.2f} s of the "
            f"{self.announced_seconds:.2f} s it announces; captioned up to there"
        )
        return (*self.warnings, missing)
