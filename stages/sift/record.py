"""What the sift stage stores of one medium, and of one part of a long video."""

import math
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artifacts.packs import Record

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
        arrays = [part for each in self.looks for part in (each.thumb, each.colours, each.packed)]
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
