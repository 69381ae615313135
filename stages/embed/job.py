"""The job description of the embed stage. Imports no model library."""

from dataclasses import dataclass

from artifacts.tiles import OFF
from stages.models.encoding import FRAMES_A_BATCH
from stages.models.encoding.job import EncodingJob


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbedJob(EncodingJob):
    """Chunks to embed, one vector per frame."""

    tiles: str = OFF
    """Squares that pictures are cut in, each of which gets a vector too."""
    edge: int = 0
    """Side of the model's input in pixels."""
    pictures: int = FRAMES_A_BATCH
    """Most parts of a picture that go through the half at once."""
