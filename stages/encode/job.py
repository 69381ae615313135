"""The job description of the encode stage, and its selection of frames. Imports no model library.

The selection picks a chunk's frames for models that take a fixed number of frames. It imports no
library at all.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from stages.models.encoding.job import EncodingJob


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodeJob(EncodingJob):
    """Chunks to encode."""

    frames_per_video: int = 0
    """Number of frames that each chunk must have; 0: any number."""


SHORTEST = 0.04
"""Minimum chunk length in seconds when frames are repeated."""


def shown_frames(
    times: Sequence[float], seconds: float, count: int
) -> tuple[list[int], tuple[float, ...]]:
    """Return the indexes and times of `count` frames that represent a chunk of `seconds` seconds.
    Frames are dropped or repeated evenly."""
    taken = [index * len(times) // count for index in range(count)]
    if count <= len(times):
        return taken, tuple(times[index] for index in taken)
    first, step = times[0], max(seconds, SHORTEST) / count
    return taken, tuple(first + index * step for index in range(count))
