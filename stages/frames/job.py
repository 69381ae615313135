"""The job descriptions of the frames stage and of cutting clips, and the check that a file still
has the known content digest. Opens no file."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from artifacts.disk.regular_files import NotAFile
from artifacts.disk.stamps import CHANGED, CHANGED_HINT, CHANGED_MESSAGE, Stamp, stamp_of
from artifacts.errors import MediaError
from artifacts.frame_fit import FrameFit
from artifacts.remote.media_cache import UNREACHABLE
from artifacts.schema import Sampling

ENCODER = "libx264"
"""Encoder of exact clips, as FFmpeg names it."""


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

    @property
    def key(self) -> str:
        """Return what names it in requests and answers: its digest."""
        return self.digest

    def check(self) -> None:
        """Raise MediaError if the file has changed since it was digested."""
        check_unchanged(Path(self.path), self.stamp)


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
    media: Sequence[FramesItem]
    workers: int
    """Number of files processed at once."""
    requests: str = ""
    """Pipe over which clients, or the waves of a run, send further media
    (stages/process/requests.py); empty: cut `media` alone."""
    max_pixels: int = 0
    """Most pixels of an image; 0: the general limit."""
    max_chunks: int = 0
    """Most chunks of a video; 0: no limit."""


class CutItem(NamedTuple):
    """A clip to make."""

    path: str
    name: str
    """Name of the clip's file without a suffix, and of the note about it."""
    start: float
    """Start of the clip in the video, in seconds."""
    end: float
    """End of the clip in the video, in seconds."""
    stamp: Stamp | None = None
    """Stamp of the file when its content was digested; None: not checked."""
    kind: str = "video"
    """`video` or `image`."""
    whole: bool = False
    """Whether it is all of the file: then it is not made where readers show the file itself as the
    model saw it."""
    copied: bool = False
    """Whether it is made nevertheless."""
    damaged: bool = False
    """Whether the file was captioned with warnings: a reader may stop at what is wrong with it."""
    retimed: bool = False
    """Whether it has the job's frames at their rate, whatever the rate of the video is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CutJob:
    """Clips to make."""

    folder: str
    """Folder for the clips."""
    cuts: list[CutItem]
    """The clips; those of one video follow each other."""
    deinterlace: bool = True
    """Whether interlaced frames lose their combs, as for the model."""
    sound: bool = False
    """Whether they hold the sound of their span, where the file has sound."""
    track: int = 0
    """Number of the sound track, from 1; 0: the one that the file marks as default, else its
    first."""
    clip: tuple[int, float] = (0, 0.0)
    """Frames of a clip that is timed anew, and their rate; 0: none is."""


def check_unchanged(path: Path, stamp: Stamp | None) -> None:
    """Raise MediaError if a file no longer has its stamp, or was removed. Raises OSError."""
    try:
        same = stamp is None or stamp_of(path) == stamp
    except NotAFile:
        same = False
    except FileNotFoundError:
        if not _was_removed(path):
            raise
        same = False
    if not same:
        raise MediaError(f"{path}: {CHANGED_MESSAGE}", kind=CHANGED, hint=CHANGED_HINT)


def _was_removed(path: Path) -> bool:
    """Return whether a missing file was removed: its folder has other files. A folder without any
    may be a mount point whose disk is away."""
    with os.scandir(path.parent) as others:
        return not os.path.lexists(path) and any(others)


CRASHED = {
    "kind": "crash",
    "message": "the decoder crashed on this file, or did not finish",
    "hint": "Convert it, for example to H.264 in MP4",
}
"""Stored failure of a file at which the process died that decoded it."""
TRANSIENT_KINDS = frozenset(("missing", "unreadable"))
"""Kinds of failure that a disk that goes away causes, and not the file. They are not stored."""

NO_ROOM = "no-memory"
"""Kind of failure of an image that is too large for the memory."""
UNSTORED_KINDS = frozenset((CHANGED, UNREACHABLE, NO_ROOM))
"""Kinds of failure that do not depend on the content; the next run retries the file."""
