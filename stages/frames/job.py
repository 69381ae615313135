"""The job description of the frames stage. Opens no file."""

from dataclasses import dataclass
from typing import NamedTuple

from artifacts.schema import FrameFit, Sampling
from artifacts.stamps import Stamp


class FramesItem(NamedTuple):
    """A media file to cut."""

    path: str
    digest: str
    """Content digest, 64 hex digits."""
    kind: str
    """`video` or `image`."""
    chunk_indexes: list[int] | None = None
    """Indexes of the chunks to make; None: all."""
    stamp: Stamp | None = None
    """Stamp of the file when its content was digested; None: not checked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FramesJob:
    """Media files to cut."""

    store: str
    namespace: str
    """Cache namespace of the frames."""
    sampling: Sampling
    fit_video: FrameFit
    """Size of video frames."""
    fit_image: FrameFit
    """Size of images."""
    media: list[FramesItem]
    workers: int
    """Number of files processed at once."""
    live: str = ""
    """Request pipe of a long-running worker; empty: process `media`."""
    max_pixels: int = 0
    """Most pixels of an image; 0: the general limit."""
    max_chunks: int = 0
    """Most chunks of a video; 0: no limit."""
