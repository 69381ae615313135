"""Reads the frame times and keyframes of a video from its packets, or by decoding it once."""

from array import array
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from artifacts.plurals import counted
from stages.frames.opening import is_damage
from stages.frames.timeline import DEFAULT_RATE, STAMPS, Keyframes, Timeline, VideoPacket
from stages.frames.watchdog import step

JUMP_BACK_SECONDS = 1.0
"""A clock that goes back further than this was reset, as at the joint of two recordings."""
JUMP_AHEAD_SECONDS = 3600.0
"""A clock that jumps further than this was reset; shorter gaps are still images."""
REORDER_SECONDS = 10.0
"""A time further than this from the decoding position is wrong, for example because of a flipped
bit."""
REORDER_PACKETS = 32
"""After so many packets, decoding has reached a frame's time, however long an image stands. No
codec reorders more than 16 frames, and each may be two fields."""
BLOCK = 1 << 14
"""Frames that are checked at a time, to bound memory."""


class PacketTimes:
    """The times that one pass over the packets collects; 24 bytes per frame."""

    def __init__(self, time_base: Fraction, *, hides: bool) -> None:
        self.pts = array("q")
        self.dts = array("q")
        self.ordinals = array("q")
        self.keys: tuple[array[int], array[int], array[int]] = (array("q"), array("q"), array("q"))
        self.jumps: list[tuple[int, int]] = []
        self.untimed = 0
        self.count = 0
        self.last = (-(1 << 62), 0)
        self._hides = hides
        self._offset = 0
        self._clock: int | None = None
        self._step = 0
        self._back = int(JUMP_BACK_SECONDS / time_base)
        self._ahead = max(1, int(JUMP_AHEAD_SECONDS / time_base))

    def add(self, packet: VideoPacket) -> None:
        ordinal, self.count = self.count, self.count + 1
        raw, duration = packet.pts, packet.duration or 0
        dts = raw if packet.dts is None else packet.dts
        if dts is not None:
            self._follow(dts, ordinal)
        if raw is None or dts is None:
            # Packets before the first keyframe cannot be decoded anyway.
            self.untimed += bool(self.keys[0]) or packet.is_keyframe
            return
        pts = raw + self._offset
        if packet.is_keyframe:
            for column, value in zip(self.keys, (pts, dts, ordinal), strict=True):
                column.append(value)
        if not packet.is_discard and not (self._hides and _is_hidden(packet)):
            self.pts.append(pts)
            self.dts.append(dts + self._offset)
            self.ordinals.append(ordinal)
            self.last = max(self.last, (pts, duration))

    def remove_wrong_times(self, time_base: Fraction, *, to_the_end: bool) -> frozenset[int]:
        """Remove the frames whose times are wrong, and return the ordinals of their packets.

        No later packet confirms the last few times. With `to_the_end` they are checked like the
        others, else only against the largest jump of a clock.
        """
        pts, dts, ordinals = (
            np.frombuffer(column, dtype=np.int64) for column in (self.pts, self.dts, self.ordinals)
        )
        step = (int(dts[-1]) - int(dts[0])) // len(dts)
        # No later packet confirms the last times, so slow slide shows need tolerance there.
        bound = max(int(REORDER_SECONDS / time_base), REORDER_PACKETS * step)
        end = int(dts[-1])
        if not to_the_end:
            end = max(end, min(int(pts.max()), end + self._ahead))
        odd = np.empty(len(pts), dtype=np.bool_)
        for first in range(0, len(pts), BLOCK):
            here = slice(first, first + BLOCK)
            later = np.full(len(pts[here]), end)
            reached = dts[first + REORDER_PACKETS : first + REORDER_PACKETS + len(later)]
            later[: len(reached)] = reached
            odd[here] = (pts[here] > later + bound) | (pts[here] < dts[here] - bound)
        # If most are odd, the decoding clock is wrong instead.
        if not odd.any() or 2 * odd.sum() > len(odd):
            return frozenset()
        out = frozenset(ordinals[odd].tolist())
        self.pts = array("q", pts[~odd].tolist())
        self.last = (max(self.pts), self.last[1])
        kept = [key for key in zip(*self.keys, strict=True) if key[2] not in out]
        pts_, dts_, ordinals_ = zip(*kept, strict=True) if kept else ((), (), ())
        self.keys = (array("q", pts_), array("q", dts_), array("q", ordinals_))
        return out

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


def _is_hidden(packet: VideoPacket) -> bool:
    """Return whether a VP8 packet holds a frame for reference only; its header says so."""
    return not memoryview(packet)[0] & 0x10


STREAMED = ("mpegts", "mpeg")
"""Broadcast formats, where any bit may flip. In all other formats, a late time at the very end is
more likely an image that stands for minutes."""
MAX_TRIES = 1000
"""How often FFmpeg may ask to be called again for one file."""


def packets(container: InputContainer, stream: VideoStream) -> Iterator[VideoPacket]:
    """Yield the non-empty packets of the stream, until the file ends or its structure breaks."""
    for _ in range(MAX_TRIES):
        try:
            for packet in container.demux(stream):
                step()
                if packet.size:
                    yield packet
            return
        except IndexError:
            return  # PyAV at the end of a file in which a further stream appears
        except av.error.BlockingIOError:
            continue  # FFmpeg skipped something
        except av.error.FFmpegError as error:
            if not is_damage(error, Path(container.name)):
                raise
            return


def survey(
    stream_packets: Iterator[VideoPacket], container: InputContainer, stream: VideoStream
) -> Timeline | None:
    """Read times and keyframes by demuxing alone, at 5 µs per packet. Return None if the packets do
    not have them."""
    assert stream.time_base is not None
    found = PacketTimes(stream.time_base, hides=stream.codec_context.name == "vp8")
    for packet in stream_packets:
        found.add(packet)
    if found.untimed or not found.pts or _only_counts(found.pts, container, stream):
        return None
    announced = announced_seconds(container, stream)
    streamed = container.format.name in STREAMED
    odd = found.remove_wrong_times(stream.time_base, to_the_end=streamed)
    del found.dts, found.ordinals  # megabytes for hours of video
    key_pts, key_dts, ordinals = found.keys
    ticks = _ascending(found.pts)
    # Two packets with one time may be two fields of one frame; a seek must not separate them.
    ordered = len(ticks) == len(found.pts) and all(a < b for a, b in pairwise(key_pts))
    keyframes = Keyframes(pts=key_pts, dts=key_dts, ordinals=ordinals)
    warnings = []
    if found.jumps:
        jumps = counted(len(found.jumps), "time")
        warnings.append(f"its clock is reset {jumps}; times continue from there")
    if odd:
        warnings.append(f"skipped because of a wrong time: {counted(len(odd), 'frame')}")
    return Timeline(
        pts=ticks,
        time_base=stream.time_base,
        last_ticks=_last_ticks(found.pts, found.last[1], stream),
        keyframes=keyframes if ordered and key_pts and not found.jumps else None,
        jumps=tuple(found.jumps),
        disbelieved=odd,
        # Without a header FFmpeg derives the length from the doubtful times.
        announced_seconds=None if odd and streamed else announced,
        warnings=tuple(warnings),
    )


def watch(frames: Iterator[VideoFrame], container: InputContainer, stream: VideoStream) -> Timeline:
    """Read times by decoding everything once, for files whose packets do not have them."""
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
    """Return the length of the video that the file states; None if only the length of the whole
    file is known."""
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


def _only_counts(ticks: "array[int]", container: InputContainer, stream: VideoStream) -> bool:
    """Return whether packets are numbered in decoding order although frames are shown in another
    order.

    AVI has no presentation times; FFmpeg corrects that for MPEG-4 but not for H.264.
    """
    reorders = container.format.name == "avi" and stream.codec_context.has_b_frames
    return bool(reorders) and all(a < b for a, b in pairwise(ticks))


def _ascending(ticks: "array[int]") -> NDArray[np.int64]:
    view = np.frombuffer(ticks, dtype=np.int64)
    view.sort()  # in place: times of hours are the largest array of this stage
    return view if bool((view[1:] > view[:-1]).all()) else np.unique(view)


def _last_ticks(ticks: "array[int]", stated: int, stream: VideoStream) -> int:
    """Return the duration of the last frame: as stated, else as the one before it, else by the
    frame rate."""
    assert stream.time_base is not None
    if stated > 0:
        return min(stated, int(JUMP_AHEAD_SECONDS / stream.time_base))
    last_two = sorted(set(ticks[-16:]))[-2:]
    if len(last_two) == 2:
        return last_two[1] - last_two[0]
    rate: Any = stream.average_rate or DEFAULT_RATE
    return max(1, round(1 / (Fraction(rate) * stream.time_base)))
