"""The job of reading off a half what it expects at each word of captions; imports no library."""

from dataclasses import dataclass
from typing import NamedTuple

from artifacts.schema import Part
from stages.models.half_job import HalfJob


class CaptionedItem(NamedTuple):
    """A chunk with a caption: the original's own, or what a person made of it."""

    key: str
    features: str
    """Key of the features."""
    prompt: str
    caption: str


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeJob:
    """Captions, and the half that is asked what it expects of them."""

    half: HalfJob
    store: str
    features_namespace: str
    members: list[CaptionedItem]
    folder: str
    """Folder where what the original expects is kept: it is written there, or compared with."""
    compared: bool = False
    """Whether this half is compared with what is there."""
    rounded: str = ""
    """Packed checkpoint whose weights take the place of the half's, as its loader would have them;
    empty: it is as it was loaded."""
    parts: tuple[Part, ...] = ()
    """Parts of which that has weights."""
    bits: int = 0
    group: int = 0
