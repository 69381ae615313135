"""Turns frames into vectors. Loads only the vision half of a dual encoder."""

from stages.embed.job import EmbedJob
from stages.process.job import StageSpec

OUTPUT_VERSION = 1
"""Increased when this stage's output changes for the same inputs; part of every later cache key."""
STAGE = StageSpec(
    name="embed",
    reads=("frames",),
    writes="embeddings",
    part="vision",
    job=EmbedJob,
    vectors=True,
    mixes_image_sizes=True,
    shrinks=True,
    supports_tiles=True,
    can_reject_items=True,
    fans_out=True,
    deletes_inputs=True,
    output_version=OUTPUT_VERSION,
    entry="stages.embed.run:run",
    verb="embedding",
)
