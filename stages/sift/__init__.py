"""Marks media files: sharpness, exposure, motion, black and still stretches, bars, fingerprints."""

from stages.process.job import StageSpec
from stages.sift.job import SiftJob

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
