"""Cuts a video into shots in a single decoding pass, and selects their frames.

Shot boundaries are detected frame by frame. The detector compares brightness and colour (Y, Cb and
Cr) of at most 106 by 60 points, as one histogram for each of 16 blocks. A cut is a frame that
differs from the one before it far more than its neighbours differ from theirs. Motion changes many
frames in a row, a cut only one. The frames after a cut must also differ from those before it;
otherwise it is a flash.

A shot's frames are chosen when its end is known, by the rules of `plan`, from the frames kept so
far. If the rule gives times (frames per second), exactly these frames were kept. If it divides a
length that is unknown before the end (frames per shot), the nearest kept frame is taken. That frame
is at most `MAX_OFFSET` of the distance between two targets away, or is the next frame that exists.
"""

import math
from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

from artifacts.schema import Sampling
from stages.frames.frame_converter import FrameConverter, opaque
from stages.frames.reader import Reader
from stages.frames.timeline import (
    ROUNDING_SECONDS,
    ChunkPlan,
    Timeline,
    first_from,
    plan_chunk,
    target_tick,
)

ROWS, COLUMNS = 60, 106
"""Most sampled points: rows, columns."""
BLOCKS = 4
"""Number of blocks along each side."""
BINS = 256
SPREAD = 32
"""Each point counts in so many bins, so that a flat area that slowly changes moves a little."""
COLOUR_SHARE = np.array([[1], [0.25], [0.25]], np.float32)
"""How much a difference of each plane counts. Codecs store colour coarsely: if it changes slowly,
Cb and Cr jump by 4 levels at once."""

AHEAD = 4
"""Frames after a cut that are needed to decide on it."""
BEHIND = 8
"""Frames before a cut that are needed to decide on it."""
FLASH_FRAMES = 3
"""A change that is reverted within so many frames is not a cut."""
MIN_REMAINING_CHANGE = 0.5
"""Share of the change that must remain by then."""
NEAR_SECONDS = 0.5
"""Frames further away do not show how fast the image moves here."""
MIN_DISTANCE = 0.08
"""Smallest distance of two frames, of 1, for a cut in a still scene."""
MIN_BLOCK_CHANGE = 0.03
"""In a cut, at least half of the blocks differ by this much, of 1. Otherwise an object has appeared
or disappeared within the shot."""
MOTION_FACTOR = 2.5
"""Factor for the mean distance of the surrounding frames, which is added for moving scenes."""
BLACK, BLACK_SHARE = 32, 0.98
"""In a black frame this share of the points is darker than BLACK, of 255."""
MIN_BRIGHTENING = 4.0
"""A fade from black gains this much brightness, of 255, in `AHEAD` frames."""
LEVELS = np.arange(BINS)
SHORTEST_SECONDS = 0.5
"""Shortest shot: a second cut within it is ignored."""

PLAIN = frozenset(("yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p"))
"""Formats of three planes with one byte per point. Others are converted to the fifth."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameFeatures:
    """The values of a frame that are compared."""

    blocks: NDArray[np.float32]
    """Histograms [planes, blocks, bins]; the sum of a block is 1."""
    brightness: float
    """Mean brightness of the points, of 255."""
    is_black: bool


class FrameDescriptor:
    """Computes the compared values for the frames of one video."""

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()

    def describe(self, frame: VideoFrame) -> FrameFeatures:
        planes = self._planes(frame)
        points = np.concatenate([plane.reshape(-1) for plane in planes])
        places = _places(tuple(plane.shape for plane in planes))
        at, size = places + points, (len(planes), BLOCKS * BLOCKS, BINS)
        counts = np.bincount(at, minlength=math.prod(size)).reshape(size)
        padded = np.zeros((*counts.shape[:2], BINS + 2 * SPREAD), dtype=np.float32)
        np.cumsum(counts, axis=2, out=padded[..., SPREAD : SPREAD + BINS])
        padded[..., SPREAD + BINS :] = padded[..., SPREAD + BINS - 1 : SPREAD + BINS]
        spread = padded[..., SPREAD:] - padded[..., :-SPREAD]
        spread /= np.maximum(padded[..., -1:] * SPREAD, 1)
        histogram = counts[0].sum(axis=0)
        return FrameFeatures(
            blocks=spread,
            brightness=float(histogram @ LEVELS) / planes[0].size,
            is_black=bool(histogram[BLACK:].sum() <= (1 - BLACK_SHARE) * planes[0].size),
        )

    def _planes(self, frame: VideoFrame) -> list[NDArray[np.uint8]]:
        """Return the sampled points of Y, Cb and Cr."""
        if frame.format.name not in PLAIN:
            frame = self._reformatter.reformat(
                opaque(frame),
                width=min(COLUMNS, frame.width),
                height=min(ROWS, frame.height),
                format="yuv444p",
                interpolation=Interpolation.POINT,
                threads=1,
            )
        down, along = -(-frame.height // ROWS), -(-frame.width // COLUMNS)
        planes: Any = frame.planes
        lines = [np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size) for plane in planes]
        return [
            pixels[: plane.height : down, : plane.width : along]
            for pixels, plane in zip(lines, planes, strict=True)
        ]


@lru_cache(maxsize=8)
def _places(shapes: tuple[tuple[int, ...], ...]) -> NDArray[np.intp]:
    """Return where the histogram of each point's block begins, for the points of all planes."""
    places = []
    for plane, shape in enumerate(shapes):
        rows, columns = (np.arange(n) * BLOCKS // n for n in shape)
        blocks = (plane * BLOCKS + rows[:, None]) * BLOCKS + columns
        places.append((blocks * BINS).reshape(-1))
    return np.concatenate(places)


def distance(one: FrameFeatures, other: FrameFeatures) -> float:
    """Return the difference of two frames in the plane that differs most, from 0 to 1."""
    return float(_changes(one, other).mean(axis=1).max())


def _changes(one: FrameFeatures, other: FrameFeatures) -> NDArray[np.float32]:
    """Return the differences of the blocks [planes, blocks], from 0 to 1."""
    changes: NDArray[np.float32] = np.abs(one.blocks - other.blocks).sum(axis=2) / 2
    return changes * COLOUR_SHARE


@dataclass(frozen=True, kw_only=True, slots=True)
class _Seen:
    """One stored frame."""

    seconds: float
    features: FrameFeatures
    step: float
    """Distance from the previous frame."""


class CutFinder:
    """Decides for each frame whether a shot begins with it. It takes every frame in order and
    decides `AHEAD` frames later. The decision depends only on the frames from `BEHIND` before to
    `AHEAD` after."""

    def __init__(self) -> None:
        self._seen: deque[_Seen] = deque(maxlen=BEHIND + 1 + AHEAD)
        self._undecided = 0

    def add(self, seconds: float, features: FrameFeatures) -> bool | None:
        """Add a frame. Return the decision on the frame `AHEAD` before it, if there is one."""
        step = distance(self._seen[-1].features, features) if self._seen else 0.0
        self._seen.append(_Seen(seconds=seconds, features=features, step=step))
        self._undecided += 1
        if self._undecided <= AHEAD:
            return None
        return self.decide()

    def decide(self) -> bool | None:
        """Return the decision on the oldest undecided frame, without waiting for later ones; None
        if all are decided."""
        if not self._undecided:
            return None
        at = len(self._seen) - self._undecided
        self._undecided -= 1
        if not at:
            return False
        return self._stays(at) if self._stands_out(at) else self._fades_in(at)

    def _stands_out(self, at: int) -> bool:
        frame = self._seen[at]
        around = [
            other.step
            for i, other in enumerate(self._seen)
            if i not in (0, at) and abs(other.seconds - frame.seconds) <= NEAR_SECONDS
        ]
        usual = math.fsum(around) / max(1, len(around))
        if frame.step < MIN_DISTANCE + MOTION_FACTOR * usual:
            return False
        # In most blocks, and not only where an object has appeared or disappeared.
        changes = _changes(self._seen[at - 1].features, frame.features)
        return float(np.median(changes, axis=1).max()) >= MIN_BLOCK_CHANGE

    def _stays(self, at: int) -> bool:
        """Return whether frames after a cut differ from those before for longer than a flash."""
        first, last = max(0, at - 1 - FLASH_FRAMES), min(len(self._seen) - 1, at + FLASH_FRAMES)
        earlier, before, now, later = (self._seen[i].features for i in (first, at - 1, at, last))
        pairs = ((before, later), (earlier, now), (earlier, later))
        return min(distance(*pair) for pair in pairs) >= MIN_REMAINING_CHANGE * self._seen[at].step

    def _fades_in(self, at: int) -> bool:
        """Return whether this frame is the middle of a fade from black."""
        before, now, last = (
            self._seen[at - 1].features,
            self._seen[at].features,
            self._seen[-1].features,
        )
        lighter = last.brightness - before.brightness >= MIN_BRIGHTENING
        return before.is_black and not now.is_black and lighter


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
        """End the shot. `shown` returns the frame on display if no frame begins in it."""
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
        while (moment := target_tick(self._timeline, self.start + self._targets * step)) < ticks:
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
        self._shown: tuple[int, VideoFrame, bool] | None = None
        """The last frame that was processed, and whether it is damaged."""

    def shots(self, index: int, start: float) -> Iterator[Shot]:
        """Yield the shots from the one that begins at `start`, in order, decoding on demand."""
        pts = self._timeline.pts
        self._piece = self._begin(index, start)
        self._first = min(first_from(self._timeline, start), len(pts) - 1)
        since = max(0, self._first - BEHIND - AHEAD)
        self._reader.request(array("q", pts[since:].tolist()))
        descriptor, finder = FrameDescriptor(), CutFinder()
        waiting: deque[tuple[int, VideoFrame, bool]] = deque()
        for at in range(since, len(pts)):
            ticks = int(pts[at])
            decoded = self._reader.at(ticks, ticks, ticks + 1)
            if decoded is None:
                continue
            waiting.append((at, decoded[1], self._reader.returned_damaged))
            begins = finder.add(self._timeline.seconds(ticks), descriptor.describe(decoded[1]))
            if begins is not None:
                yield from self._pass(*waiting.popleft(), begins)
        while waiting:
            yield from self._pass(*waiting.popleft(), bool(finder.decide()))
        yield from self._split(self._timeline.end)
        yield from self._release()
        yield self._close(self._timeline.end)

    def _pass(self, at: int, frame: VideoFrame, damaged: bool, begins: bool) -> Iterator[Shot]:
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
        self._shown = (at, frame, damaged)
        if self._piece.may_select(at):
            self._piece.keep(self._paint(at, frame, damaged))

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

    def _paint(self, at: int, frame: VideoFrame, damaged: bool) -> Kept:
        pixels = self._converter.allocate(1)[0]
        self._converter.convert(frame, pixels)
        ticks = int(self._timeline.pts[at])
        return Kept(ticks=ticks, pixels=pixels, damaged=damaged)


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
