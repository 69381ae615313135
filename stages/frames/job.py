"""The job of the frames stage, as its process is told it; opens no file."""

from dataclasses import dataclass, replace
from typing import Any

from artifacts.schema import FrameFit


@dataclass(frozen=True, kw_only=True, slots=True)
class FramesJob:
    """Media to be cut."""

    store: str
    namespace: str
    """Namespace of the frames."""
    sampling: dict[str, Any]
    """The fields of a Sampling."""
    fit: dict[str, Any]
    """Sizes at which videos and images are seen."""
    shrinks: bool = False
    """Whether pictures may be made smaller while they are decoded."""
    media: list[dict[str, Any]]
    """`path`, `digest`, `kind`, `wanted` chunks (None: all) and the file's `stamp` of each
    medium."""
    workers: int
    """Number of files cut at once."""
    live: str = ""
    """Pipe of media to be cut as they are told; empty: those of `media`."""
    most_pixels: int = 0
    """Most pixels of a picture that is read; 0: as many as are ever read."""
    most_chunks: int = 0
    """Most chunks of a video that is cut; 0: any."""

    def fits(self) -> dict[str, FrameFit]:
        """Return the sizes at which videos and images are kept."""
        found = {
            kind: FrameFit(long_edges=tuple((float(a), int(e)) for a, e in edges))
            for kind, edges in self.fit.items()
        }
        return {**found, "image": replace(found["image"], shrinks=self.shrinks)}
