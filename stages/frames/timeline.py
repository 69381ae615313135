"""The presentation times and keyframes of a video, read without decoding; knows nothing of
sampling."""

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from typing import Any, TypeAlias

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from stages.frames.opening import is_damage

JUMP_BACK_SECONDS = 1.0
"""A clock that goes back further than this was set anew, as where recordings were joined."""
JUMP_AHEAD_SECONDS = 3600.0
"""A clock that leaps further than this was set anew; shorter gaps are pictures that stand."""
SHORT_SECONDS = 0.5
"""Frames that end this much before the announced end mean that the file was cut short."""
DEFAULT_RATE = Fraction(25)
"""Frames a second where a file states neither times nor a rate, as raw streams do."""

VideoPacket: TypeAlias = "Packet[VideoStream]"
Stamp = Callable[[VideoFrame, int], int | None]
STAMPS: dict[str, Stamp] = {
    "pts": lambda frame, ordinal: frame.pts,
    "dts": lambda frame, ordinal: frame.dts,
    "count": lambda frame, ordinal: ordinal,
}
"""How a frame's time is told, best first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Keyframes:
    """Where decoding can begin, in the order of the file."""

    pts: "array[int]"
    """Presentation time of each, in ticks of the stream, ascending."""
    dts: "array[int]"
    """Decoding time of each, in the file's own ticks: what to seek to."""
    ordinals: "array[int]"
    """Which packet of the stream each is, counted from 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Timeline:
    """When each frame of a video is shown."""

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
    announced_seconds: float | None = None
    """Length that the file states, if it does."""
    warnings: tuple[str, ...] = ()
    """What is wrong with the file, one sentence each."""

    @property
    def start(self) -> int:
        """Ticks of the first frame: time 0."""
        return int(self.pts[0])

    def seconds(self, ticks: int) -> float:
        """Ticks of the file's clock as seconds since the first frame."""
        return (ticks - self.start) * self.time_base.numerator / self.time_base.denominator

    @property
    def duration(self) -> float:
        """Seconds from the first frame to the end of the last."""
        return self.seconds(int(self.pts[-1]) + self.last_ticks)

    def starting_at(self, ticks: int) -> "Timeline":
        """Without the frames before the first one that can be decoded."""
        return replace(self, pts=self.pts[np.searchsorted(self.pts, ticks) :])

    def all_warnings(self) -> tuple[str, ...]:
        """What is wrong with the file, its missing end included."""
        announced = self.announced_seconds or 0.0
        step = self.duration / len(self.pts)
        if announced - self.duration <= max(SHORT_SECONDS, 2 * step):
            return self.warnings
        missing = (
            f"cut short: its frames end at {self.duration:.2f} s of the {announced:.2f} s "
            "it announces; captioned up to there"
        )
        return (*self.warnings, missing)


class _Survey:
    """What one pass over the packets gathers; 8 bytes a frame, whatever the length."""

    def __init__(self, time_base: Fraction) -> None:
        self.pts = array("q")
        self.keys: tuple[array[int], array[int], array[int]] = (array("q"), array("q"), array("q"))
        self.jumps: list[tuple[int, int]] = []
        self.untimed = 0
        self.count = 0
        self.last = (-(1 << 62), 0)
        self._offset = 0
        self._clock: int | None = None
        self._step = 0
        self._back = int(JUMP_BACK_SECONDS / time_base)
        self._ahead = int(JUMP_AHEAD_SECONDS / time_base)

    def add(self, packet: VideoPacket) -> None:
        ordinal, self.count = self.count, self.count + 1
        raw, duration = packet.pts, packet.duration or 0
        dts = raw if packet.dts is None else packet.dts
        if dts is not None:
            self._follow(dts, ordinal)
        if raw is None or dts is None:
            # Before the first keyframe nothing can be decoded, so nothing is lost there.
            self.untimed += bool(self.keys[0]) or packet.is_keyframe
            return
        pts = raw + self._offset
        if packet.is_keyframe:
            for column, value in zip(self.keys, (pts, dts, ordinal), strict=True):
                column.append(value)
        if not packet.is_discard:
            self.pts.append(pts)
            self.last = max(self.last, (pts, duration))

    def _follow(self, dts: int, ordinal: int) -> None:
        now = dts + self._offset
        if self._clock is not None:
            leap = now - self._clock
            if not -self._back <= leap <= self._ahead:
                self._offset += self._step - leap
                self.jumps.append((ordinal, self._offset))
                now = self._clock + self._step
            elif leap > 0:
                self._step = leap
        self._clock = now


def packets(container: InputContainer, stream: VideoStream) -> Iterator[VideoPacket]:
    """The stream's packets that hold something, until the file ends or its structure breaks."""
    try:
        for packet in container.demux(stream):
            if packet.size:
                yield packet
    except av.error.FFmpegError as error:
        if not is_damage(error):
            raise


def survey(
    stream_packets: Iterator[VideoPacket], container: InputContainer, stream: VideoStream
) -> Timeline | None:
    """Times and keyframes by demuxing alone, at 5 µs a packet; None when packets do not tell
    them."""
    assert stream.time_base is not None
    found = _Survey(stream.time_base)
    for packet in stream_packets:
        found.add(packet)
    if found.untimed or not found.pts:
        return None
    key_pts, key_dts, ordinals = found.keys
    ordered = all(a < b for a, b in pairwise(key_pts))
    keyframes = Keyframes(pts=key_pts, dts=key_dts, ordinals=ordinals)
    jumped = f"its clock is set anew {len(found.jumps)} times; times run on from there"
    return Timeline(
        pts=_ascending(found.pts),
        time_base=stream.time_base,
        last_ticks=_last_ticks(found.pts, found.last[1], stream),
        keyframes=keyframes if ordered and key_pts and not found.jumps else None,
        jumps=tuple(found.jumps),
        announced_seconds=announced_seconds(container, stream),
        warnings=(jumped,) if found.jumps else (),
    )


def watch(frames: Iterator[VideoFrame], container: InputContainer, stream: VideoStream) -> Timeline:
    """Times by decoding everything once, for files whose packets do not tell them."""
    columns: dict[str, array[int]] = {name: array("q") for name in STAMPS}
    count = 0
    for count, frame in enumerate(frames, 1):
        for name, stamp in STAMPS.items():
            ticks = stamp(frame, count - 1)
            if ticks is not None:
                columns[name].append(ticks)
    name = next(
        name
        for name, column in columns.items()
        if len(column) == count and all(a < b for a, b in pairwise(column))
    )
    assert stream.time_base is not None
    counted = name == "count"
    rate: Any = stream.average_rate or stream.guessed_rate or DEFAULT_RATE
    return Timeline(
        pts=np.frombuffer(columns[name], dtype=np.int64),
        time_base=1 / Fraction(rate) if counted else stream.time_base,
        last_ticks=1 if counted else _last_ticks(columns[name], 0, stream),
        keyframes=None,
        stamp=name,
        demuxed=False,
        announced_seconds=announced_seconds(container, stream),
    )


def announced_seconds(container: InputContainer, stream: VideoStream) -> float | None:
    """The length of the video that the file states; None where only a whole file's is known."""
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    hours, minutes, seconds = ([*stream.metadata.get("DURATION", "").split(":"), "", ""])[:3]
    try:
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except ValueError:
        pass
    if container.duration is None or len(container.streams) > 1:
        return None
    return container.duration / av.time_base


def _ascending(ticks: "array[int]") -> NDArray[np.int64]:
    return np.unique(np.frombuffer(ticks, dtype=np.int64))


def _last_ticks(ticks: "array[int]", stated: int, stream: VideoStream) -> int:
    """How long the last frame stands: as stated, else as the one before it, else by the rate."""
    assert stream.time_base is not None
    if stated > 0:
        return min(stated, int(JUMP_AHEAD_SECONDS / stream.time_base))
    last_two = sorted(set(ticks[-16:]))[-2:]
    if len(last_two) == 2:
        return last_two[1] - last_two[0]
    rate: Any = stream.average_rate or DEFAULT_RATE
    return max(1, round(1 / (Fraction(rate) * stream.time_base)))
