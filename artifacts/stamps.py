"""Stamps, which tell whether a file is the one that was read before. It knows nothing of what is in
it."""

import errno
import os
from pathlib import Path
from typing import NamedTuple

from artifacts.regular import refuse_odd

CHANGED = "changed"
"""Kind of failure of a file that is another one by now: no fault of what it held, so it is not
remembered."""
CHANGED_MESSAGE = "it was changed or replaced after the run began"
CHANGED_HINT = "Run the same command again, once nothing writes it any more"


class FileChanged(OSError):
    """A file was written or replaced while it was read."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(errno.EBUSY, "it was changed while it was read", str(path))


class Stamp(NamedTuple):
    """The marks that a file had when it was read, and has as long as nobody writes or replaces
    it."""

    size: int
    """Bytes."""
    modified: int
    """Nanoseconds since the epoch."""
    inode: int


def stamp_of(path: str | Path | int) -> Stamp:
    """Return the stamp of the file that a path leads to, or that is open as this descriptor. Raises
    OSError, NotAFile among them."""
    found = os.stat(path)
    refuse_odd(found.st_mode, str(path))
    return Stamp(size=found.st_size, modified=found.st_mtime_ns, inode=found.st_ino)
