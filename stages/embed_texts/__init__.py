"""Turns texts into vectors. Loads only the text half of a dual encoder."""

from stages.embed_texts.job import TextsJob
from stages.process.stage import StageSpec

OUTPUT_VERSION = 1
"""Raised when this stage's own output changes for the same inputs; part of every key below it."""
STAGE = StageSpec(
    name="embed_texts",
    reads="",
    writes="texts",
    part="language",
    job=TextsJob,
    of_media=False,
    vectors=True,
    output_version=OUTPUT_VERSION,
    entry="stages.embed_texts.run:run",
    verb="reading texts",
)
TEXTS_A_BATCH = 64
"""Texts that go through the text half at once, where they fit."""
