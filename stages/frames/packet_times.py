"""Gathers the times of a video's packets in one pass; knows no file.

A clock that was set anew is followed, and a time that cannot be right is taken out.
"""

from array import array
from fractions import Fraction

import numpy as np

from stages.frames.timeline import VideoPacket

JUMP_BACK_SECONDS = 1.0
"""A clock that goes back further than this was set anew, as where recordings were joined."""
JUMP_AHEAD_SECONDS = 3600.0
"""A clock that leaps further than this was set anew; shorter gaps are pictures that stand."""
REORDER_SECONDS = 10.0
"""A time further than this from where decoding has come to is not to be believed, as where a bit of
it has flipped."""
REORDER_PACKETS = 32
"""Decoding has come to a frame's time so many packets later, however long a picture stands: no
codec reorders more than 16 frames, and each may come as two fields."""
BLOCK = 1 << 14
"""Frames judged at a time, so that judging takes no memory to speak of."""


class PacketTimes:
    """The times that one pass over the packets gathers; 24 bytes a frame, whatever the length."""

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
            # Before the first keyframe nothing can be decoded, so nothing is lost there.
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

    def disbelieve(self, time_base: Fraction, *, to_the_end: bool) -> frozenset[int]:
        """Take out the frames whose time cannot be right; returns their packets' ordinals.

        The last few, which no later packet bears out, are judged like the others with `to_the_end`,
        else only by how far a clock may leap.
        """
        pts, dts, ordinals = (
            np.frombuffer(column, dtype=np.int64) for column in (self.pts, self.dts, self.ordinals)
        )
        step = (int(dts[-1]) - int(dts[0])) // len(dts)
        # At the end no later packet tells, so that slow slide shows need room there.
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
        # If most are, then it is the clock of decoding that is off.
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
