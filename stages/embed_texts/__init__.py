"""Turns texts into vectors. Loads only the text half of a dual encoder."""

from stages.embed_texts.job import TextsJob
from stages.process.job import StageSpec

OUTPUT_VERSION = 2
"""Increased when this stage's output changes for the same inputs; part of every later cache key."""
STAGE = StageSpec(
    name="embed_texts",
    writes="texts",
    part="language",
    job=TextsJob,
    of_media=False,
    vectors=True,
    output_version=OUTPUT_VERSION,
    entry="stages.embed_texts.run:run",
    verb="reading texts",
    counts="text",
)
TEXTS_PER_BATCH = 64
"""Maximum number of texts per pass through the text half."""
