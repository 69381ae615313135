"""One file to cut, and the check that it is still the file with the known digest. Decodes
nothing."""

from dataclasses import dataclass
from pathlib import Path

from artifacts.errors import MediaError
from artifacts.regular import NotAFile
from artifacts.remote.keeping import UNREACHABLE
from artifacts.stamps import CHANGED, CHANGED_HINT, CHANGED_MESSAGE, Stamp, stamp_of
from stages.frames.job import FramesItem


@dataclass(frozen=True, kw_only=True, slots=True)
class MediumToCut:
    """One file to cut."""

    path: Path
    digest: str
    """Content digest, 64 hex digits."""
    kind: str
    """`video` or `image`."""
    chunk_indexes: frozenset[int] | None
    """Indexes of the chunks to make; None: all of them."""
    stamp: Stamp | None = None
    """Stamp of the file when its content was digested; None: whatever is there is taken."""

    @classmethod
    def of(cls, item: FramesItem) -> "MediumToCut":
        path, digest, kind, chunk_indexes, stamp = item
        chosen = None if chunk_indexes is None else frozenset(chunk_indexes)
        return cls(path=Path(path), digest=digest, kind=kind, chunk_indexes=chosen, stamp=stamp)

    def check(self) -> None:
        """Raise MediaError when the file is not the one any more whose digest this is."""
        check_unchanged(self.path, self.stamp)


def check_unchanged(path: Path, stamp: Stamp | None) -> None:
    """Raise MediaError when a file does not have the stamp that it had. Raises OSError."""
    try:
        same = stamp is None or stamp_of(path) == stamp
    except NotAFile:
        same = False
    if not same:
        raise MediaError(f"{path}: {CHANGED_MESSAGE}", kind=CHANGED, hint=CHANGED_HINT)


PASSING = frozenset(("missing", "unreadable"))
"""Kinds of failure of a file that could be read a moment ago, when its disk goes away: no fault of
the file, and not to be remembered as one."""

NOT_REMEMBERED = frozenset((CHANGED, UNREACHABLE))
"""Kinds of failure that say nothing of what a file holds: the next run tries it again."""
