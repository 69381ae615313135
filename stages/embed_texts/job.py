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
    """Namespace of what is made of them."""
    key: str = ""
    """Key of the record that is made."""
    groups: list[list[str]] = field(default_factory=list)
    """Texts of which one vector each is made: all that say the same in other words."""
    batch: int
    """Texts that go through the half at once."""
    live: str = ""
    """Pipe of lists of TextsItem, which are then told instead, as they come."""
