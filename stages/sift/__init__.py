"""Marks media files: sharpness, exposure, motion, black and still stretches, bars, fingerprints."""

from dataclasses import dataclass

from stages.frames.job import FramesItem
from stages.process.stage_spec import StageSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class SiftJob:
    """Media files to mark."""

    store: str
    namespace: str
    """Cache namespace of the marks."""
    media: list[FramesItem]
    """The files; their chunks are not chosen."""
    workers: int
    """Number of files processed at once."""


OUTPUT_VERSION = 8
"""Raised when this stage's output changes for the same inputs; part of its cache namespace."""
STAGE = StageSpec(
    name="sift",
    writes="marks",
    job=SiftJob,
    output_version=OUTPUT_VERSION,
    entry="stages.sift.run:run",
    verb="marking",
    counts="file",
)
