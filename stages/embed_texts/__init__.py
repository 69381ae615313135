"""Turns texts into vectors. Loads only the text half of a dual encoder."""

from dataclasses import dataclass, field
from typing import NamedTuple

from stages.models.half_job import HalfJob
from stages.process.stage_spec import StageSpec


class TextsItem(NamedTuple):
    """Texts that a worker process embeds into one record."""

    key: str
    groups: list[list[str]]


@dataclass(frozen=True, kw_only=True, slots=True)
class TextsJob:
    """Texts to embed."""

    half: HalfJob
    store: str
    namespace: str
    """Cache namespace of the vectors."""
    key: str = ""
    """Key of the record."""
    groups: list[list[str]] = field(default_factory=list)
    """Groups of texts with the same meaning; each group gets one vector."""
    batch: int
    """Number of texts per pass through the half."""
    requests: str = ""
    """Pipe over which clients send items (stages/process/requests.py); empty: embed `groups`."""


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
