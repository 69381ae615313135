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
    """Indexes of the chunks to make; None: all of them."""
    stamp: Stamp | None = None
    """Stamp of the file when its content was digested; None: whatever is there is taken."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FramesJob:
    """Media files to cut."""

    store: str
    namespace: str
    """Namespace of the frames."""
    sampling: Sampling
    fit_video: FrameFit
    """Size at which videos are seen."""
    fit_image: FrameFit
    """Size at which images are seen."""
    media: list[FramesItem]
    workers: int
    """Number of files cut at once."""
    live: str = ""
    """Pipe of media to be cut as they are told; empty: those of `media`."""
    max_pixels: int = 0
    """Most pixels of a picture that is read; 0: as many as are ever read."""
    max_chunks: int = 0
    """Most chunks of a video that is cut; 0: any."""
