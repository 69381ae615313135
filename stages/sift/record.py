"""What the sift stage stores of one medium, and of one part of a long video."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artifacts.packs import Record

SIDE = 64
"""Side of a thumbnail in pixels; its aspect is not kept."""
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
class Marked:
    """The measurements of a medium, or of a part of a video."""

    meta: dict[str, Any]
    """Kind, width, height, seconds, faults and bars, and of a video its start in seconds since
    time 0. Of a part: faults."""
    thumbs: NDArray[np.uint8]
    """Grey thumbnails [n, SIDE, SIDE]: of an image one, of a video one per fraction."""
    brightest: NDArray[np.uint8]
    """Of a part: largest value of each point over its samples that are not black [height, width].
    Of a medium: nothing."""
    series: NDArray[np.float32]
    """Samples [n, columns of SERIES]; of an image one."""

    def record(self, key: str) -> Record:
        """Return it as a record."""
        shapes = {"thumbs": len(self.thumbs), "brightest": list(self.brightest.shape)}
        arrays = (self.thumbs, self.brightest, self.series)
        payload = b"".join(np.ascontiguousarray(each).tobytes() for each in arrays)
        return Record(key=key, meta={**self.meta, **shapes}, payload=payload)

    @classmethod
    def of(cls, record: Record) -> "Marked":
        """Return what a record holds."""
        meta, payload = record.meta, bytes(record.payload)
        high, wide = meta["brightest"]
        first = meta["thumbs"] * SIDE * SIDE
        second = first + high * wide
        return cls(
            meta=meta,
            thumbs=np.frombuffer(payload[:first], np.uint8).reshape(-1, SIDE, SIDE),
            brightest=np.frombuffer(payload[first:second], np.uint8).reshape(high, wide),
            series=np.frombuffer(payload[second:], np.float32).reshape(-1, len(SERIES)),
        )

    def column(self, name: str) -> NDArray[np.float32]:
        """Return one column of the samples."""
        return self.series[:, SERIES.index(name)]
