"""The job description of the texts stage. Imports no model library."""

from dataclasses import dataclass, field
from typing import NamedTuple

from stages.models.half_job import HalfJob


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
    live: str = ""
    """Pipe with lists of TextsItem to embed as they arrive; empty: embed `groups`."""
