"""File stamps, which detect whether a file changed since it was read.

Model files have a stamp of their own that includes the inode's change time: reading gigabytes again
is cheap compared with captions of a wrong model. Media stamps leave it out, because a backup or a
`chmod` changes it and would cause a whole media library to be read again.
"""

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
    """The metadata of a file when it was read. It stays equal as long as the file is neither
    written nor replaced."""

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


class ModelFileStamp(NamedTuple):
    """The metadata of a model file. Any write, replacement or restore of the file changes it."""

    size: int
    """Bytes."""
    modified: int
    """Nanoseconds since the epoch."""
    changed: int
    """Nanoseconds since the epoch when content, name or rights of the inode were last changed;
    unlike `modified` it cannot be set."""
    inode: int


def model_stamp_of(path: str | Path) -> ModelFileStamp:
    """Return the stamp of the model's file that a path leads to. Raises OSError, NotAFile among
    them."""
    found = os.stat(path)
    refuse_odd(found.st_mode, str(path))
    return _model_stamp(found)


def link_stamp_of(path: str | Path) -> ModelFileStamp | None:
    """Return the stamp of a link itself; None for what is no link. Raises OSError."""
    return _model_stamp(os.lstat(path)) if os.path.islink(path) else None


def _model_stamp(found: os.stat_result) -> ModelFileStamp:
    return ModelFileStamp(
        size=found.st_size,
        modified=found.st_mtime_ns,
        changed=found.st_ctime_ns,
        inode=found.st_ino,
    )
