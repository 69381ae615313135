"""Cuts media files into chunks of RGB frames."""

from stages.frames.job import FramesJob
from stages.process.stage_spec import StageSpec

OUTPUT_VERSION = 13
"""Raised when this stage's output changes for the same inputs; part of every cache key that depends
on it."""
PACK_BYTES = 64 << 20
"""Images are stored as soon as they reach this many bytes."""
READING_BYTES = 12
"""Bytes per pixel while an image is read: Pillow's 4, twice if Pillow itself turns it as it does a
TIFF, and the 3 stored."""
STAGE = StageSpec(
    name="frames",
    writes="frames",
    job=FramesJob,
    output_version=OUTPUT_VERSION,
    entry="stages.frames.run:run",
    verb="cutting frames",
)
