"""Plans which packets of a video need no decoding for a set of frames.

The unit is a group of pictures: a keyframe and all packets until the next keyframe. After the
decoder received the last requested frame of a group, all packets up to the keyframe of the next
requested frame are skipped. After the very last requested frame, everything is skipped.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from itertools import groupby

from stages.frames.timeline import Keyframes

END = -1
"""Seek target after the last requested frame."""


class SeekPlan:
    """The seek plan of one video for a set of its frames."""

    def __init__(
        self,
        ticks: "array[int]",
        keyframes: Keyframes | None,
        *,
        sent: Iterable[int] = (),
        threads: int = 1,
    ) -> None:
        """`ticks` are the requested frames, ascending. `sent` are the ticks of packets that were
        already decoded.

        A seek must skip at least as many packets as there are threads, because it drains their
        pipeline.
        """
        self._ticks = ticks
        self._keys = keyframes
        self._min_skipped = threads
        self._next = 0
        self._groups: array[int] = array("q")
        self._missing: array[int] = array("q")
        if keyframes is not None:
            for key, group in groupby(ticks, key=self._group_of):
                self._groups.append(key)
                self._missing.append(sum(1 for _ in group))
        for tick in sent:
            self.needs(tick)

    def needs(self, ticks: int) -> bool:
        """Return whether the frame of the packet with these ticks, which is about to be decoded, is
        requested."""
        at = bisect_left(self._ticks, ticks)
        if at == len(self._ticks) or self._ticks[at] != ticks:
            return False
        if self._keys is not None:
            self._missing[bisect_left(self._groups, self._group_of(ticks))] -= 1
        return True

    def seek_target(self, ordinal: int) -> int | None:
        """Return the position in `keyframes` of the keyframe to continue from instead of packet
        `ordinal`. Return END if no further frame is requested, None to decode that packet."""
        keys = self._keys
        if keys is None:
            return None
        while self._next < len(self._groups) and self._missing[self._next] <= 0:
            self._next += 1
        if self._next == len(self._groups):
            return END
        key = self._groups[self._next]
        if key < 0 or keys.ordinals[key] - ordinal < self._min_skipped:
            return None
        return key

    def disable(self) -> None:
        """Make no further seeks."""
        self._keys = None

    def _group_of(self, ticks: int) -> int:
        assert self._keys is not None
        return bisect_right(self._keys.pts, ticks) - 1
