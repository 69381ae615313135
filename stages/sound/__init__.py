"""Reads the sound of media files as mono samples, cut as the frames are."""

from stages.process.job import StageSpec
from stages.sound.job import SoundJob

OUTPUT_VERSION = 1
"""Raised when this stage's output changes for the same inputs; part of every cache key that depends
on it."""
STAGE = StageSpec(
    name="sound",
    writes="sound",
    job=SoundJob,
    can_reject_items=True,
    output_version=OUTPUT_VERSION,
    entry="stages.sound.run:run",
    verb="reading sound",
)
