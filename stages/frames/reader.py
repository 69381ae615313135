"""Finds the frames at given times in a video with as little decoding as possible.

It decodes in file order and skips frames that are neither requested nor needed as references. It
seeks to a later keyframe if that skips enough. Its frames equal those of a plain decode of the
whole file at the same times.

Where data is missing, FFmpeg conceals it, and differently for other seeks and numbers of threads.
So the decoder reports damage. A frame behind it is decoded again by one thread, from its own
keyframe on and without skipping, and then depends on the file alone. FFmpeg does not notice every
bit error, mostly in VP8 and HEVC; such frames may still differ.

Where the first frame is interlaced, both neighbours of each requested frame are decoded, too.
"""

from array import array
from bisect import bisect_left, bisect_right
from pathlib import Path

import numpy as np
from av.video.frame import VideoFrame

from stages.frames.decoder import Decoder
from stages.frames.interlacing import deinterlaced
from stages.frames.opening import no_frames
from stages.frames.seek_plan import SeekPlan
from stages.frames.survey import survey, watch
from stages.frames.timeline import Timeline

MAX_RETURNS = 16
"""After so many damaged stretches, one thread decodes the rest of the file."""


class Reader:
    """One open video with known frame times."""

    def __init__(
        self,
        path: Path,
        *,
        threads: int = 0,
        timeline: Timeline | None = None,
        deinterlace: bool = True,
    ) -> None:
        """Open a video and read its frame times, unless `timeline` is that of another reader of it;
        `threads` 0 uses all cores. With `deinterlace`, `at` returns interlaced frames without
        combs. Raises MediaError."""
        self.path = path
        self.decoder = Decoder(path, threads=threads)
        self.passed_over = False
        """Whether packets before a returned frame could not be decoded; its user resets it."""
        self._ticks = array("q")
        self._requested = False
        self._group: int | None = None
        self._returns = 0
        self._next: tuple[int, VideoFrame] | None = None
        self._before: tuple[int, VideoFrame] | None = None
        self._deinterlaces = deinterlace
        self._around: dict[int, VideoFrame | None] = {}
        """Ticks → frame: the last requested one and the one after it, which is needed again if
        every frame is requested."""
        try:
            self.timeline, self.first_frame = self._learn(timeline)
            self._needs_neighbours = deinterlace and self.first_frame.interlaced_frame
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file and release the decoder's memory."""
        self._next = self._before = None
        self._around = {}
        self.decoder.close()

    def request(self, ticks: "array[int]") -> None:
        """Announce the frames that `at` will be called for, ascending, so that others can be
        skipped."""
        if self._needs_neighbours:
            pts, self._around = self.timeline.pts, {}
            next_to = np.searchsorted(pts, ticks)[:, None] + np.arange(-1, 2)
            known = pts[next_to.clip(0, len(pts) - 1)]
            ticks = array("q", np.union1d(known, ticks).tolist())
        if self._requested:
            self._forget()
            self._group = None
            self.decoder.reopen(strict=True)
        self._requested, self._ticks = True, ticks
        self._plan(ticks)

    def _forget(self) -> None:
        self.decoder.seek_plan = self._next = self._before = None

    def _plan(self, ticks: "array[int]") -> None:
        if self.timeline.demuxed:
            decoder = self.decoder
            decoder.seek_plan = SeekPlan(
                ticks, self.timeline.keyframes, sent=decoder.sent, threads=decoder.threads
            )

    def at(self, ticks: int, first: int, beyond: int) -> tuple[int, VideoFrame] | None:
        """Return the frame of `ticks`. If it cannot be decoded, return the last frame before it
        from `first` on, or the next one before `beyond`; else None. No time may be before the one
        of the last call."""
        if not self._needs_neighbours:
            found = self._at(ticks, first, beyond)
            if found is None or not self._deinterlaces:
                return found
            return found[0], deinterlaced(found[1])
        pts = self.timeline.pts
        at = int(np.searchsorted(pts, ticks))
        before = self._exactly(int(pts[at - 1])) if at else None
        found = self._at(ticks, first, beyond)
        if found is None or found[0] != ticks:
            return found and (found[0], deinterlaced(found[1]))
        self._around[ticks] = found[1]
        after = self._exactly(int(pts[at + 1])) if at + 1 < len(pts) else None
        self._around = {t: frame for t, frame in self._around.items() if t >= ticks}
        return ticks, deinterlaced(found[1], before, after)

    def _exactly(self, ticks: int) -> VideoFrame | None:
        """Return the frame of `ticks`, which may be one that `at` has passed; None if it cannot be
        decoded."""
        if ticks not in self._around:
            found = self._at(ticks, ticks, ticks + 1)
            self._around[ticks] = found and found[1]
        return self._around[ticks]

    def _at(self, ticks: int, first: int, beyond: int) -> tuple[int, VideoFrame] | None:
        """Do the same with frames as they are decoded."""
        if self._group is not None and self._group != self._group_of(ticks):
            self._leave_damage(ticks)
        following = self._find(ticks)
        if self._group is None and (self.decoder.is_damaged or not self._is_at(ticks)):
            self._decode_carefully(ticks)
            following = self._find(ticks)
        self.passed_over |= self._group is not None and self.decoder.bad_packets > 0
        if self._before is not None and first <= self._before[0] <= ticks:
            return self._before
        return following if following is not None and following[0] < beyond else None

    def _find(self, ticks: int) -> tuple[int, VideoFrame] | None:
        """Advance to the last frame up to `ticks`, and return the frame after it."""
        following = self._go_to(ticks)
        landed = self.decoder.landed
        if landed is not None and landed > ticks and not self._is_at(ticks):
            # Decoding cannot start at that keyframe; earlier frames are needed.
            self._next = self._before = None
            self.decoder.decode_everything()
            following = self._go_to(ticks)
        return following

    def _decode_carefully(self, ticks: int) -> None:
        """Go to the keyframe of `ticks` with one thread that conceals damage."""
        group = self._group = self._group_of(ticks)
        self._forget()
        self.decoder.reopen(strict=False)
        if group < 0 or self.decoder.keyframes is None:
            return
        self.decoder.land(group)
        if group + 1 < len(self.decoder.keyframes.ordinals):
            self.decoder.group_end = self.decoder.keyframes.ordinals[group + 1]
        self._peek()
        landed = self.decoder.landed
        if landed is not None and landed > self.decoder.keyframes.pts[group]:
            # Decoding cannot start at this file's keyframes.
            self._forget()
            self.decoder.keyframes = None
            self._group = -1
            self.decoder.reopen(strict=False)

    def _leave_damage(self, ticks: int) -> None:
        """Go on behind a damaged stretch, with all threads if there were few such stretches."""
        self._returns += 1
        if self._returns > MAX_RETURNS:
            self._decode_carefully(ticks)
            return
        self._group = None
        self._forget()
        self.decoder.reopen(strict=True)
        self._plan(self._ticks[bisect_left(self._ticks, ticks) :])

    def _group_of(self, ticks: int) -> int:
        """Return the position of the last keyframe up to `ticks`; -1 for the start of the file."""
        keyframes = self.decoder.keyframes
        return -1 if keyframes is None else bisect_right(keyframes.pts, ticks) - 1

    def _go_to(self, ticks: int) -> tuple[int, VideoFrame] | None:
        """Advance to the last frame up to `ticks`, and return the frame after it."""
        while not self._is_at(ticks) and (following := self._peek()) and following[0] <= ticks:
            self._before, self._next = following, None
        return self._next

    def _is_at(self, ticks: int) -> bool:
        return self._before is not None and self._before[0] == ticks

    def _peek(self) -> tuple[int, VideoFrame] | None:
        if self._next is None:
            count = self.decoder.frames_out
            frame = self.decoder.pull()
            if frame is not None:
                ticks = self.timeline.ticks_of(frame, count)
                # Skip a frame without a time if the other frames have one.
                self._next = (self.timeline.start - 1 if ticks is None else ticks, frame)
        return self._next

    def _learn(self, known: Timeline | None) -> tuple[Timeline, VideoFrame]:
        decoder, timeline = self.decoder, known
        if known is None:
            timeline = survey(decoder.survey_packets(), decoder.container, decoder.stream)
            decoder.restart()
        if timeline is not None:
            decoder.jumps, decoder.disbelieved = timeline.jumps, timeline.disbelieved
        first = decoder.pull()
        if first is None or decoder.is_damaged:
            decoder.reopen(strict=False)
            first = decoder.pull()
        if first is None:
            raise no_frames(self.path)
        if timeline is not None and timeline.demuxed and first.pts is not None:
            at = bisect_left(timeline.pts, first.pts)
            if at < len(timeline.pts) and timeline.pts[at] == first.pts:
                if decoder.strict:
                    self._next = (first.pts, first)
                else:
                    decoder.reopen(strict=True)
                decoder.keyframes = timeline.keyframes
                return timeline.with_plausible_rate().starting_at(first.pts), first
        # The packets have no times, or other times than their frames.
        decoder.jumps, decoder.disbelieved = (), frozenset()
        decoder.reopen(strict=True)
        if known is not None:
            return known, first
        watched = watch(iter(decoder.pull, None), decoder.container, decoder.stream)
        if decoder.is_damaged:
            decoder.reopen(strict=False)
            watched = watch(iter(decoder.pull, None), decoder.container, decoder.stream)
        decoder.reopen(strict=True)
        return watched.with_plausible_rate().starting_at(watched.start), first
