"""Finds the frames at given times in a video with as little decoding as possible.

It decodes in file order and skips frames that are neither requested nor needed as references. It
seeks to a later keyframe if that skips enough. Its frames equal those of a plain decode of the
whole file at the same times. Only in damaged parts do the bytes depend on the seeks and on the
number of threads, because FFmpeg conceals missing data.
"""

from array import array
from bisect import bisect_left
from pathlib import Path

from av.video.frame import VideoFrame

from stages.frames.decoder import Decoder
from stages.frames.opening import no_frames
from stages.frames.seek_plan import SeekPlan
from stages.frames.survey import survey, watch
from stages.frames.timeline import STAMPS, Timeline


class Reader:
    """One open video with known frame times."""

    def __init__(self, path: Path, *, threads: int = 0) -> None:
        """Open a video and read its frame times; `threads` 0 uses all cores. Raises MediaError."""
        self.path = path
        self.decoder = Decoder(path, threads=threads)
        self._requested = False
        self._next: tuple[int, VideoFrame] | None = None
        self._before: tuple[int, VideoFrame] | None = None
        try:
            self.timeline, self.first_frame = self._learn()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file and release the decoder's memory."""
        self._next = self._before = None
        self.decoder.close()

    def request(self, ticks: "array[int]") -> None:
        """Announce the frames that `at` will be called for, ascending, so that others can be
        skipped."""
        if self._requested:
            self.decoder.seek_plan = self._next = self._before = None
            self.decoder.restart()
        self._requested = True
        if self.timeline.demuxed:
            decoder = self.decoder
            decoder.seek_plan = SeekPlan(
                ticks, self.timeline.keyframes, sent=decoder.sent, threads=decoder.threads
            )

    def at(self, ticks: int, first: int, beyond: int) -> tuple[int, VideoFrame] | None:
        """Return the frame of `ticks`. If it cannot be decoded, return the last frame before it
        from `first` on, or the next one before `beyond`; else None."""
        following = self._go_to(ticks)
        landed = self.decoder.landed
        if landed is not None and landed > ticks and not self._is_at(ticks):
            # Decoding cannot start at that keyframe; earlier frames are needed.
            self._next = self._before = None
            self.decoder.decode_everything()
            following = self._go_to(ticks)
        if self._before is not None and first <= self._before[0] <= ticks:
            return self._before
        return following if following is not None and following[0] < beyond else None

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
                ticks = STAMPS[self.timeline.stamp](frame, count)
                # Skip a frame without a time if the other frames have one.
                self._next = (self.timeline.start - 1 if ticks is None else ticks, frame)
        return self._next

    def _learn(self) -> tuple[Timeline, VideoFrame]:
        decoder = self.decoder
        timeline = survey(decoder.survey_packets(), decoder.container, decoder.stream)
        decoder.restart()
        if timeline is not None:
            decoder.jumps, decoder.disbelieved = timeline.jumps, timeline.disbelieved
        first = decoder.pull()
        if first is None:
            raise no_frames(self.path)
        if timeline is not None and first.pts is not None:
            at = bisect_left(timeline.pts, first.pts)
            if at < len(timeline.pts) and timeline.pts[at] == first.pts:
                self._next = (first.pts, first)
                decoder.keyframes = timeline.keyframes
                return timeline.with_plausible_rate().starting_at(first.pts), first
        # The packets have no times, or other times than their frames.
        decoder.jumps, decoder.disbelieved = (), frozenset()
        decoder.restart()
        timeline = watch(iter(decoder.pull, None), decoder.container, decoder.stream)
        decoder.restart()
        decoder.bad_packets = 0
        return timeline.with_plausible_rate(), first
