"""Detects shot boundaries frame by frame.

It compares brightness and colour (Y, Cb and Cr) of at most 106 by 60 points, as one histogram for
each of 16 blocks. A cut is a frame that differs from the one before it far more than its neighbours
differ from theirs. Motion changes many frames in a row, a cut only one. The frames after a cut must
also differ from those before it; otherwise it is a flash.
"""

import math
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

from stages.frames.frame_converter import opaque

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
        self._places: dict[tuple[tuple[int, ...], ...], NDArray[np.intp]] = {}

    def describe(self, frame: VideoFrame) -> FrameFeatures:
        """Return the features of a frame."""
        planes = self._planes(frame)
        shapes = tuple(plane.shape for plane in planes)
        if shapes not in self._places:
            self._places[shapes] = np.concatenate([*map(_places, range(len(shapes)), shapes)])
        points = np.concatenate([plane.reshape(-1) for plane in planes])
        at, size = self._places[shapes] + points, (len(planes), BLOCKS * BLOCKS, BINS)
        counts = np.bincount(at, minlength=math.prod(size)).reshape(size)
        padded = np.zeros((*counts.shape[:2], BINS + 2 * SPREAD), dtype=np.float32)
        np.cumsum(counts, axis=2, out=padded[..., SPREAD : SPREAD + BINS])
        padded[..., SPREAD + BINS :] = padded[..., SPREAD + BINS - 1 : SPREAD + BINS]
        spread = padded[..., SPREAD:] - padded[..., :-SPREAD]
        spread /= np.maximum(padded[..., -1:] * SPREAD, 1)
        whole = counts[0].sum(axis=0)
        return FrameFeatures(
            blocks=spread,
            brightness=float(whole @ LEVELS) / planes[0].size,
            is_black=bool(whole[BLACK:].sum() <= (1 - BLACK_SHARE) * planes[0].size),
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
        lines = [np.frombuffer(each, np.uint8).reshape(-1, each.line_size) for each in planes]
        return [
            each[: plane.height : down, : plane.width : along]
            for each, plane in zip(lines, planes, strict=True)
        ]


def _places(plane: int, shape: tuple[int, ...]) -> NDArray[np.intp]:
    """Return where the histogram of each point's block begins, for the points of a plane."""
    rows, columns = (np.arange(n) * BLOCKS // n for n in shape)
    blocks: NDArray[np.intp] = (plane * BLOCKS + rows[:, None]) * BLOCKS + columns
    return (blocks * BINS).reshape(-1)


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
        """Add a frame, and return the decision on the frame `AHEAD` frames before it; None if there
        is none yet."""
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
        here = self._seen[at]
        around = [
            other.step
            for i, other in enumerate(self._seen)
            if i not in (0, at) and abs(other.seconds - here.seconds) <= NEAR_SECONDS
        ]
        usual = math.fsum(around) / max(1, len(around))
        if here.step < MIN_DISTANCE + MOTION_FACTOR * usual:
            return False
        # In most blocks, and not only where an object has appeared or disappeared.
        changes = _changes(self._seen[at - 1].features, here.features)
        return float(np.median(changes, axis=1).max()) >= MIN_BLOCK_CHANGE

    def _stays(self, at: int) -> bool:
        """Return whether the frames after differ from those before, also beyond the length of a
        flash."""
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
