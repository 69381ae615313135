"""The job description of the sift stage. Opens no file."""

from dataclasses import dataclass

from stages.frames.job import FramesItem


@dataclass(frozen=True, kw_only=True, slots=True)
class SiftJob:
    """Media files to mark."""

    store: str
    namespace: str
    """Cache namespace of the marks."""
    media: list[FramesItem]
    """The files; their chunks are not chosen."""
    workers: int
    """Number of files processed at once."""
