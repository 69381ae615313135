"""What the frames stage is told; opens no file."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class FramesJob:
    """Media to be cut."""

    store: str
    scope: str
    """Of the frames."""
    sampling: dict[str, Any]
    """The fields of a Sampling."""
    fit: dict[str, Any]
    """Of videos and of images the size at which they are seen."""
    media: list[dict[str, Any]]
    """Of each `path`, `digest`, `kind`, `wanted` chunks (None: all) and the file's `stamp`."""
    workers: int
    """Files at once."""
