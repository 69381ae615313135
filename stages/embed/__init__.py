"""Turns frames into vectors. Loads only the vision half of a dual encoder."""

from stages.embed.job import EmbedJob
from stages.process.stage import StageSpec

OUTPUT_VERSION = 1
"""Raised when this stage's own output changes for the same inputs; part of every key below it."""
STAGE = StageSpec(
    name="embed",
    reads="frames",
    writes="embeddings",
    part="vision",
    job=EmbedJob,
    vectors=True,
    any_size=True,
    shrinks=True,
    tiled=True,
    refuses=True,
    gives_back=True,
    output_version=OUTPUT_VERSION,
    entry="stages.embed.run:run",
    verb="embedding",
)
