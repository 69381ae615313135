"""Says what a job knows of one file."""

from dataclasses import dataclass

from flows.core.ledger.tasks import Medium
from flows.core.media.media_file import MediaFile


@dataclass(frozen=True, kw_only=True, slots=True)
class JobFile:
    """One readable file of a job under one prompt."""

    file: MediaFile
    medium: Medium
    """Its content, with that prompt."""
    away: bool = False
    """Whether an earlier run read it and it cannot be read now: only its stored records count."""
