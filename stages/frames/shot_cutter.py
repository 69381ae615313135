"""Cuts a video into shots in a single decoding pass, and selects their frames.

A shot's frames are chosen when its end is known, by the rules of `plan`, from the frames kept so
far. If the rule gives times (frames per second), exactly these frames were kept. If it divides a
length that is unknown before the end (frames per shot), the nearest kept frame is taken. That frame
is at most `MAX_OFFSET` of the distance between two targets away, or is the next frame that exists.
"""

from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from artifacts.schema import Sampling
from stages.frames.frame_converter import FrameConverter
from stages.frames.plan import ROUNDING_SECONDS, ChunkPlan, plan_chunk, positions, tick_at
from stages.frames.reader import Reader
from stages.frames.shots import AHEAD, BEHIND, SHORTEST_SECONDS, CutFinder, FrameDescriptor
from stages.frames.timeline import Timeline

MAX_OFFSET = 1 / 3
"""Largest distance of a frame from its target, as a share of the distance between two targets. A
smaller value converts more frames that are then dropped."""
KEPT_PER_FRAME = 4
"""Most kept frames per frame of a chunk; above 1 / MAX_OFFSET."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """A frame that may be selected."""

    ticks: int
    pixels: NDArray[np.uint8]
    """RGB, [height, width, 3]."""
    damaged: bool
    """Whether the decoder marked it as damaged."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shot:
    """One shot, or one part of a long shot."""

    plan: ChunkPlan
    """`ticks` are the target frames."""
    kept: tuple[Kept, ...]
    """Selected frames, ascending."""
    missed: tuple[int, ...]
    """Ticks of target frames that could not be decoded."""


class _Piece:
    """A shot in progress, or a part of one."""

    def __init__(self, timeline: Timeline, sampling: Sampling, *, index: int, start: float) -> None:
        self.index, self.start = index, start
        self._timeline = timeline
        self._sampling = sampling
        self._kept: list[Kept] = []
        self._came = array("q")
        self._targets = 0
        # A file may be shorter than the shortest shot.
        self._min_seconds = min(SHORTEST_SECONDS, timeline.duration)
        self._max_frames = sampling.frames or sampling.max_frames

    def may_select(self, at: int) -> bool:
        """Return whether the decoded frame at this position may be selected."""
        timeline, sampling = self._timeline, self._sampling
        ticks, following = int(timeline.pts[at]), _next_ticks(timeline, at)
        self._came.append(ticks)
        if len(self._kept) < sampling.min_frames:
            return True
        if sampling.fps is None:
            return self._leaves_a_gap(following, sampling.frames or 1)
        if self._is_target(ticks, following, 1 / sampling.fps):
            return True
        is_early = timeline.seconds(ticks) - self.start < sampling.min_frames / sampling.fps
        return is_early and self._leaves_a_gap(following, sampling.min_frames)

    def keep(self, kept: Kept) -> None:
        """Keep a frame, and thin the kept frames out if there are too many."""
        self._kept.append(kept)
        if len(self._kept) > KEPT_PER_FRAME * self._max_frames:
            length = self._timeline.seconds(kept.ticks) - self.start
            self._thin(2 * MAX_OFFSET * length / self._max_frames)

    def close(self, end: float, shown: Callable[[], Kept | None]) -> Shot:
        """End the shot at `end` and return it. `shown` returns the frame on display if no frame
        begins in the shot."""
        plan = plan_chunk(
            self._timeline, self._sampling, index=self.index, start=self.start, end=end
        )
        if not self._kept and (standing := shown()) and standing.ticks >= plan.first:
            self._kept.append(standing)
            self._came.append(standing.ticks)
        missed = tuple(sorted(set(plan.ticks).difference(self._came)))
        return Shot(plan=plan, kept=tuple(_nearest(plan.ticks, self._kept)), missed=missed)

    def _is_target(self, ticks: int, following: int, step: float) -> bool:
        """Return whether a frame is on display at one of the target times."""
        while (moment := tick_at(self._timeline, self.start + self._targets * step)) < ticks:
            self._targets += 1
        return moment < following

    def _leaves_a_gap(self, following: int, count: int) -> bool:
        """Return whether the next frame would be too late for an even selection of `count` frames.
        The shot may end at any time."""
        if count == 1:
            return not self._kept
        seconds = self._timeline.seconds
        last = seconds(self._kept[-1].ticks)
        # The last target is at (count - 1) / count of the length.
        length = max(last - self.start, self._min_seconds)
        return seconds(following) - last > 2 * MAX_OFFSET * length / (count - 1)

    def _thin(self, gap: float) -> None:
        """Drop frames between two that are at most `gap` seconds apart."""
        seconds = self._timeline.seconds
        thinned = self._kept[:1]
        for kept, following in pairwise(self._kept[1:]):
            if seconds(following.ticks) - seconds(thinned[-1].ticks) > gap:
                thinned.append(kept)
        self._kept = [*thinned, self._kept[-1]]


class ShotCutter:
    """One pass over a video."""

    def __init__(self, reader: Reader, sampling: Sampling, converter: FrameConverter) -> None:
        self._reader = reader
        self._timeline = reader.timeline
        self._sampling = sampling
        self._converter = converter
        self._held: Shot | None = None
        """A finished part of a long shot. If the shot ends soon after it, this part is extended to
        that end."""
        self._shown: tuple[int, VideoFrame] | None = None
        """The last frame that was processed."""

    def shots(self, index: int, start: float) -> Iterator[Shot]:
        """Yield the shots from the one that begins at `start`, in order, decoding on demand."""
        pts = self._timeline.pts
        self._piece = self._begin(index, start)
        self._first = positions(self._timeline, start, self._timeline.end)[0]
        since = max(0, self._first - BEHIND - AHEAD)
        self._reader.request(array("q", pts[since:].tolist()))
        descriptor, finder = FrameDescriptor(), CutFinder()
        waiting: deque[tuple[int, VideoFrame]] = deque()
        for at in range(since, len(pts)):
            ticks = int(pts[at])
            found = self._reader.at(ticks, ticks, ticks + 1)
            if found is None:
                continue
            waiting.append((at, found[1]))
            begins = finder.add(self._timeline.seconds(ticks), descriptor.describe(found[1]))
            if begins is not None:
                yield from self._pass(*waiting.popleft(), begins)
        while waiting:
            yield from self._pass(*waiting.popleft(), bool(finder.decide()))
        yield from self._split(self._timeline.end)
        yield from self._release()
        yield self._close(self._timeline.end)

    def _pass(self, at: int, frame: VideoFrame, begins: bool) -> Iterator[Shot]:
        """Process one frame; `begins` is whether a shot begins with it."""
        if at < self._first:
            return
        seconds = self._timeline.seconds(int(self._timeline.pts[at]))
        yield from self._split(seconds)
        age, rest = seconds - self._piece.start, self._timeline.end - seconds
        if begins and rest >= SHORTEST_SECONDS:
            if self._held is not None and age < SHORTEST_SECONDS:
                yield replace(self._held, plan=replace(self._held.plan, end=seconds))
                self._held = None
                self._piece = self._begin(self._piece.index, seconds)
            elif age >= SHORTEST_SECONDS:
                yield from self._release()
                yield self._close(seconds)
        if age >= SHORTEST_SECONDS:
            yield from self._release()
        self._shown = (at, frame)
        if self._piece.may_select(at):
            self._piece.keep(self._paint(at, frame))

    def _split(self, seconds: float) -> Iterator[Shot]:
        """Yield the parts of a long shot that have ended by `seconds`."""
        length = self._sampling.chunk_seconds
        while (end := self._piece.start + length) <= seconds + ROUNDING_SECONDS:
            if self._timeline.end - end < min(SHORTEST_SECONDS, length / 2):
                return
            yield from self._release()
            self._held = self._close(end)

    def _release(self) -> Iterator[Shot]:
        held, self._held = self._held, None
        if held is not None:
            yield held

    def _close(self, end: float) -> Shot:
        shot = self._piece.close(end, lambda: self._shown and self._paint(*self._shown))
        self._piece = self._begin(self._piece.index + 1, end)
        return shot

    def _begin(self, index: int, start: float) -> _Piece:
        return _Piece(self._timeline, self._sampling, index=index, start=start)

    def _paint(self, at: int, frame: VideoFrame) -> Kept:
        pixels = self._converter.allocate(1)[0]
        self._converter.convert(frame, pixels)
        ticks = int(self._timeline.pts[at])
        return Kept(ticks=ticks, pixels=pixels, damaged=frame.is_corrupt)


def _next_ticks(timeline: Timeline, at: int) -> int:
    if at + 1 < len(timeline.pts):
        return int(timeline.pts[at + 1])
    return int(timeline.pts[at]) + timeline.last_ticks


def _nearest(ticks: "array[int]", kept: list[Kept]) -> list[Kept]:
    """Return the frame nearest to each of `ticks`, each frame once."""
    stamps = [one.ticks for one in kept]
    chosen: list[int] = []
    for left, tick in zip(range(len(ticks), 0, -1), ticks, strict=True):
        above = bisect_left(stamps, tick)
        neighbours = [at for at in (above - 1, above) if 0 <= at < len(stamps)]
        best = min(neighbours, key=lambda at: abs(stamps[at] - tick), default=0)
        # Leave at least one frame for each following target, if possible.
        at = max(min(best, len(stamps) - left), chosen[-1] + 1 if chosen else 0)
        if at < len(stamps):
            chosen.append(at)
    return [kept[at] for at in chosen]
