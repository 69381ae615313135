"""Turns frames into vectors. Loads only the vision half of a dual encoder.

This module has the job and the bounds of the check of fp16. It imports no model library.
"""

from dataclasses import dataclass

from artifacts.tiles import OFF
from stages.models.encoding import FRAMES_PER_BATCH, EncodingJob
from stages.process.stage_spec import StageSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbedJob(EncodingJob):
    """Chunks to embed, one vector per frame."""

    tiles: str = OFF
    """Tiling of images; each tile gets a vector, too."""
    edge: int = 0
    """Side of the model's input in pixels."""
    fp16_check: str = ""
    """Digest of the half in fp16, which is checked first; empty: no check."""
    pictures: int = FRAMES_PER_BATCH
    """Maximum number of tiles per pass through the half."""


TRIED_IMAGES = 16
"""Images on which fp16 is compared with fp32."""
MIN_COSINE = 0.9999
"""Smallest cosine of a vector in fp16 to the one in fp32 with which fp16 is used."""


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
