"""Trains an adapter of the language half on stored features. No pixel is read, and no vision
encoder is loaded."""

from stages.process.job import StageSpec
from stages.tune.job import TuneJob

OUTPUT_VERSION = 3
"""Raised when the same examples train another adapter."""
STAGE = StageSpec(
    name="tune",
    part="language",
    job=TuneJob,
    of_media=False,
    output_version=OUTPUT_VERSION,
    entry="stages.tune.run:run",
    verb="tuning",
    counts="step",
)
