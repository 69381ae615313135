"""A file to process, and the check that it still has the known content digest."""

from dataclasses import dataclass
from pathlib import Path

from artifacts.errors import MediaError
from artifacts.regular_files import NotAFile
from artifacts.remote.media_cache import UNREACHABLE
from artifacts.stamps import CHANGED, CHANGED_HINT, CHANGED_MESSAGE, Stamp, stamp_of
from stages.frames.job import FramesItem


@dataclass(frozen=True, kw_only=True, slots=True)
class MediumToCut:
    """One file to process."""

    path: Path
    digest: str
    """Content digest, 64 hex digits."""
    kind: str
    """`video` or `image`."""
    chunk_indexes: frozenset[int] | None
    """Indexes of the chunks to make; None: all."""
    stamp: Stamp | None = None
    """Stamp of the file when its content was digested; None: not checked."""

    @classmethod
    def of(cls, item: FramesItem) -> "MediumToCut":
        path, digest, kind, chunk_indexes, stamp = item
        chosen = None if chunk_indexes is None else frozenset(chunk_indexes)
        return cls(path=Path(path), digest=digest, kind=kind, chunk_indexes=chosen, stamp=stamp)

    def check(self) -> None:
        """Raise MediaError if the file has changed since it was digested."""
        check_unchanged(self.path, self.stamp)


def check_unchanged(path: Path, stamp: Stamp | None) -> None:
    """Raise MediaError if a file no longer has its stamp. Raises OSError."""
    try:
        same = stamp is None or stamp_of(path) == stamp
    except NotAFile:
        same = False
    if not same:
        raise MediaError(f"{path}: {CHANGED_MESSAGE}", kind=CHANGED, hint=CHANGED_HINT)


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
