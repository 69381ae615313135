"""Turns frames into features. Loads only the vision half.

This module has the job, and selects a chunk's frames for models that take a fixed number of frames.
It imports no model library.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from stages.models.encoding import EncodingJob
from stages.process.stage_spec import StageSpec


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


OUTPUT_VERSION = 3
"""Increased when this stage's output changes for the same inputs; part of every later cache key."""
STAGE = StageSpec(
    name="encode",
    reads=("frames",),
    writes="features",
    part="vision",
    job=EncodeJob,
    can_reject_items=True,
    fans_out=True,
    deletes_inputs=True,
    output_version=OUTPUT_VERSION,
    entry="stages.encode.run:run",
    verb="encoding",
)
