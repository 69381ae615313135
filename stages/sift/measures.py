"""Measures one small grey picture, and defines what the sift stage stores.

The measures are sharpness, exposure, darkness, and the change to the next picture. The stage stores
a record of one medium, and of one part of a long video.
"""

import math
import zlib
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from artifacts.records.packs import Record

SIDE = 64
"""Side of a thumbnail in pixels; its aspect is not kept."""
COLOUR_SIDE, DETAIL_SIDE = 16, 256
"""The same of its planes of colour, and of the detail of a plain picture."""
STEP_SECONDS = 0.5
"""Seconds between two samples of a video."""
FRACTIONS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Where in a video its thumbnails are taken."""
NO_POINTS = np.zeros((0, 0), np.uint8)
SERIES = ("time", "sharpness", "exposure", "clipped", "dark", "change", "motion")
"""Columns of the samples. `time` is in seconds since the first frame, `dark` the share of dark
points, `change` the largest difference of a block from the sample before, of 255, and `motion` in
picture lengths per second. NaN: unknown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """How a picture, or a frame of a video, looks: what copies are found by."""

    thumb: NDArray[np.uint8]
    """Grey thumbnail [SIDE, SIDE]."""
    colours: NDArray[np.uint8]
    """Planes Cb and Cr [2, COLOUR_SIDE, COLOUR_SIDE]; of a picture of 1 bit zeros."""
    packed: bytes
    """Of a plain picture, such as a slide: its `detail`, compressed. Otherwise empty."""
    shape: tuple[int, int]
    """Rows and columns of the picture that the detail was taken from."""

    @property
    def detail(self) -> NDArray[np.uint8]:
        """Return the grey points of a plain picture [DETAIL_SIDE, DETAIL_SIDE]."""
        return np.frombuffer(zlib.decompress(self.packed), np.uint8).reshape(DETAIL_SIDE, -1)


NO_LOOK = Look(
    thumb=np.zeros((SIDE, SIDE), np.uint8),
    colours=np.zeros((2, COLOUR_SIDE, COLOUR_SIDE), np.uint8),
    packed=b"",
    shape=(1, 1),
)
"""That of nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Marked:
    """The measurements of a medium, or of a part of a video."""

    meta: dict[str, Any]
    """Kind, width, height, seconds, faults and bars, and of a video its start in seconds since
    time 0. Of a part: faults."""
    looks: tuple[Look, ...]
    """Of an image one, of a video one per fraction."""
    brightest: NDArray[np.uint8]
    """Of a part: largest value of each point over its samples that are not black [height, width].
    Of a medium: nothing."""
    series: NDArray[np.float32]
    """Samples [n, columns of SERIES]; of an image one."""

    def record(self, key: str) -> Record:
        """Return it as a record."""
        looks = [[len(look.packed), *look.shape] for look in self.looks]
        shapes = {"looks": looks, "brightest": list(self.brightest.shape)}
        arrays = [part for look in self.looks for part in (look.thumb, look.colours, look.packed)]
        payload = b"".join(bytes(part) for part in (*arrays, self.brightest, self.series))
        return Record(key=key, meta={**self.meta, **shapes}, payload=payload)

    @classmethod
    def of(cls, record: Record) -> "Marked":
        """Return what a record holds."""
        meta, payload, at = record.meta, bytes(record.payload), 0

        def points(*shape: int) -> NDArray[np.uint8]:
            nonlocal at
            at += (size := math.prod(shape))
            # A copy, so that the payload can be freed.
            return np.frombuffer(payload[at - size : at], np.uint8).reshape(shape)

        looks = tuple(
            Look(
                thumb=points(SIDE, SIDE),
                colours=points(2, COLOUR_SIDE, COLOUR_SIDE),
                packed=points(packed).tobytes(),
                shape=(high, wide),
            )
            for packed, high, wide in meta["looks"]
        )
        brightest = points(*meta["brightest"])
        series = np.frombuffer(payload[at:], np.float32).reshape(-1, len(SERIES))
        return cls(meta=meta, looks=looks, brightest=brightest, series=series)

    def column(self, name: str) -> NDArray[np.float32]:
        """Return one column of the samples."""
        return self.series[:, SERIES.index(name)]


Grey = NDArray[np.uint8]
Points = NDArray[np.float32]
EDGE = 256
"""Longer side of the measured picture in pixels."""
DARK = 24
"""Points below this, of 255, are dark; black video compresses to a few levels above 0."""
BLACK_SHARE = 0.98
"""A sample is black where so many of its points are dark."""
CLIPPED = (2, 253)
"""Points outside these values have lost their detail."""
LEAST_BAR, UNEVEN = 0.02, 0.25
"""Least height of a bar, as a share of the picture, and the share by which two may differ."""
LIT_SHARE = 0.3
"""Share of points that are not dark in the first row of a picture between bars. A night sky ends
more slowly than a bar."""
SHARP_EDGE = 512
"""Longer side of the picture whose sharpness is measured. At 256, a blur of 0.4 % of the side and
sharp pictures cannot be told apart."""
BOX = 5
"""Width of the second blur, in pixels."""
TILES, SHARP_TILES = 8, 0.9
"""Tiles along each side, and the quantile of their sharpness that counts: a sharp face before a
blurred background is sharp."""
LEAST_DETAIL = 1.0
"""Mean difference of neighbours, of 255, below which a tile is flat."""
LIKE, PLAIN_LEVELS, PLAIN_SHARE, DARK_PLAIN_SHARE = 2, 4, 0.5, 0.85
"""A picture is plain where more than this share of its points differ from their neighbours by so
many levels at most, and have one of its four most frequent levels. Of 440 slides, screens and pages
all have a share of 0.61 or more; of 360 photos 99 % have one of 0.49 at most. Others, such as a
planet in the sky, are mostly black; dark slides have 0.87 or more."""
BLOCKS = 16
"""Blocks along each side that are compared between two samples."""
FLOW_SIZES, FLOW_BLOCKS = (16, 32), 8
"""Points along each side at which motion is looked for, and blocks whose motion is one."""
FLOW_NOISE = 3.0
"""Mean squared slope of a block, in levels, that does not yet show where it moved to."""


def small_size(width: int, height: int, edge: int = EDGE) -> tuple[int, int]:
    """Return the (width, height) at which a picture of this size is measured."""
    scale = min(1.0, edge / max(width, height))
    return max(8, round(width * scale)), max(8, round(height * scale))


def sharpness(grey: Grey) -> float:
    """Return how much detail a blur takes away, from 0 (blurred) to 1; 0 for a flat picture.

    A picture that is blurred already changes little when it is blurred again (Crete et al. 2007).
    """
    values = grey.astype(np.int16)
    # Every second line says as much, in half the time.
    return max(_lost(values[:, ::2], 0), _lost(values[::2], 1))


def _lost(values: NDArray[np.int16], axis: int) -> float:
    """Return the share of the differences along an axis that a blur along it removes."""
    length = values.shape[axis]
    if length < 2 * BOX:
        return 0.0

    def part(start: int) -> NDArray[np.int16]:
        kept = slice(start, start + length - BOX)
        return values[kept] if axis == 0 else values[:, kept]

    middle = BOX // 2
    before = np.abs(part(middle + 1) - part(middle))
    # The difference of two neighbouring means is that of the points in which they differ.
    removed = np.maximum(BOX * before - np.abs(part(BOX) - part(0)), 0)
    detail, lost = _means(before, TILES) * BOX, _means(removed, TILES)
    shown = detail > LEAST_DETAIL * BOX
    return float(np.quantile(lost[shown] / detail[shown], SHARP_TILES)) if shown.any() else 0.0


def _means(values: NDArray[Any], count: int) -> Points:
    """Return the means of `count` x `count` areas."""
    rows, columns = (area_weights(length, count) for length in values.shape)
    return rows @ (values.astype(np.float32) @ columns.T)


def thumb_of(grey: Grey) -> Grey:
    """Return the thumbnail of a measured picture: means of areas, in SIDE rows and columns."""
    return np.rint(_means(grey, SIDE)).astype(np.uint8)


def look_of(grey: Grey, sharp: Grey, coloured: Image.Image | None) -> Look:
    """Return how a picture looks: of the measured picture, of the one whose sharpness is measured,
    and of the coloured one, which a picture of 1 bit has not."""
    colours = np.zeros((COLOUR_SIDE, COLOUR_SIDE, 3), np.uint8)
    if coloured is not None:
        wide_high = grey.shape[1], grey.shape[0]
        small = np.asarray(coloured.resize(wide_high, Image.Resampling.BOX, reducing_gap=1.0))
        # Pillow's box has whole pixels, which in a small picture would move its colours.
        planes = [_means(small[..., plane], COLOUR_SIDE) for plane in range(3)]
        means = Image.fromarray(np.rint(np.stack(planes, axis=2)).astype(np.uint8))
        colours = np.asarray(means.convert("YCbCr"), np.uint8)
    detail = np.rint(_means(sharp, DETAIL_SIDE)).astype(np.uint8) if is_plain(grey) else None
    return Look(
        thumb=thumb_of(grey),
        colours=colours[..., 1:].transpose(2, 0, 1),
        packed=b"" if detail is None else zlib.compress(detail.tobytes(), 1),
        shape=(sharp.shape[0], sharp.shape[1]),
    )


def is_coloured(look: Look) -> bool:
    """Return whether a picture has other colours than grey. Rounding moves a grey one by 1."""
    return bool(np.abs(look.colours.astype(np.int16) - 128).max() > 1)


def is_plain(grey: Grey) -> bool:
    """Return whether most of a measured picture between its bars has few levels, as slides,
    screens and pages."""
    high, wide = grey.shape
    top, bottom, left, right = bars_of(grey)
    inner = grey[round(top * high) : high - round(bottom * high)]
    values = inner[:, round(left * wide) : wide - round(right * wide)].astype(np.int16)
    across = np.abs(np.diff(values, axis=1))[1:] <= LIKE
    down = np.abs(np.diff(values, axis=0))[:, 1:] <= LIKE
    counts = np.bincount(values[1:, 1:][across & down], minlength=256)
    least = DARK_PLAIN_SHARE if counts.argmax() < DARK else PLAIN_SHARE
    return bool(np.sort(counts)[-PLAIN_LEVELS:].sum() > least * across.size)


@cache
def area_weights(
    length: int, count: int, start: float = 0.0, share: float = 1.0
) -> NDArray[np.float32]:
    """Return the weights of the points of a side in `count` equal areas, [count, length]. The areas
    cover `share` of the side, beginning at `start`."""
    edges = start * length + np.arange(count + 1) * (share * length) / count
    at = np.arange(length)
    inside = np.minimum(edges[1:, None], at + 1) - np.maximum(edges[:-1, None], at)
    covered = np.maximum(inside, 0) * count / (share * length)
    weights: Points = covered.astype(np.float32)
    return weights


def row_of(time: float, grey: Grey, thumb: Grey, before: tuple[float, Grey] | None) -> list[float]:
    """Return the sample of a picture in the order of SERIES, without sharpness. `before` is the
    time and the thumbnail of the sample before."""
    low, high = CLIPPED
    sample = {
        "time": time,
        "exposure": float(grey.mean()) / 255,
        "clipped": float(((grey < low) | (grey > high)).mean()),
        "dark": float((grey < DARK).mean()),
    }
    if before is not None:
        now, then = thumb.astype(np.float32), before[1].astype(np.float32)
        side = SIDE // BLOCKS
        blocks = np.abs(now - then).reshape(BLOCKS, side, BLOCKS, side).mean((1, 3))
        sample["change"] = float(blocks.max())
        moved = _moved(now, then) * np.array(grey.shape)[:, None, None] / max(grey.shape)
        sample["motion"] = float(np.hypot(*moved).mean()) / max(time - before[0], 1e-3)
    return [sample.get(name, float("nan")) for name in SERIES]


def _moved(now: Points, then: Points) -> Points:
    """Return by how much of a side each of FLOW_BLOCKS x FLOW_BLOCKS blocks moved down and to the
    right [2, blocks, blocks], by least squares (Lucas and Kanade 1981). A block that moved by more
    than a point at a small size is not looked at in larger ones, where it would not be found."""
    moved = np.zeros((2, FLOW_BLOCKS, FLOW_BLOCKS), np.float32)
    for size in FLOW_SIZES:
        ways = _blurs(size)
        slopes = ways @ (now + then) @ ways.T
        lost = ways[:size] @ (then - now) @ ways[:size].T
        points = np.stack([slopes[size:, :size], slopes[:size, size:], lost - lost.mean()])
        times = FLOW_BLOCKS * 4 // size  # a block has at least 4 x 4 points
        block = area_weights(size, FLOW_BLOCKS // times)
        a, b, c, p, q = block @ (points[[0, 1, 0, 0, 1]] * points[[0, 1, 1, 2, 2]]) @ block.T
        a, b = a + FLOW_NOISE, b + FLOW_NOISE
        places = np.stack([b * p - c * q, a * q - c * p]) / ((a * b - c * c) * size)
        places = places.repeat(times, 1).repeat(times, 2)
        moved = np.where(np.hypot(*moved) * size <= 2, places, moved)
    return moved


@cache
def _blurs(size: int) -> Points:
    """Return the weights of the points of a side when a thumbnail gets smaller and is blurred,
    since steep edges have no slope, and below them those of half the slopes."""
    near = np.eye(size) * 2 + np.eye(size, k=1) + np.eye(size, k=-1)
    smaller = near / near.sum(axis=1, keepdims=True) @ area_weights(SIDE, size)
    return np.concatenate([smaller, np.gradient(smaller, axis=0) / 2]).astype(np.float32)


def bars_of(brightest: Grey) -> list[float]:
    """Return the heights of the dark bars above and below the picture, and their widths on the left
    and right, as shares of it. Bars come in pairs of about one size."""
    return [*_pair(brightest), *_pair(brightest.T)]


def _pair(points: Grey) -> tuple[float, float]:
    lit = points >= DARK
    shares = lit.mean(axis=1)
    rows = np.flatnonzero(shares > 0.02)
    if not len(rows):
        return 0.0, 0.0
    length = len(shares)
    above, below = int(rows[0]), length - 1 - int(rows[-1])
    even = abs(above - below) <= max(2, UNEVEN * max(above, below))
    # The codec blurs the edge over a row or two.
    edges = shares[rows[0] : rows[0] + 3].max(), shares[rows[-1] - 2 : rows[-1] + 1].max()
    if min(above, below) < LEAST_BAR * length or not even or min(edges) < LIT_SHARE:
        return 0.0, 0.0
    return above / length, below / length
