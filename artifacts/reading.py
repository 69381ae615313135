"""Files that others write: only what is a file is opened, and a file that was replaced is noticed;
knows nothing of what is in them."""

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple


class NotAFile(OSError):
    """A FIFO, a socket, a device or a folder is where a file should be; it was not opened, which
    could have taken for ever."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(errno.EINVAL, "it is no regular file", str(path))


class FileChanged(OSError):
    """A file was written or replaced while it was read."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(errno.EBUSY, "it was changed while it was read", str(path))


class Stamp(NamedTuple):
    """What tells that a file is the one that was read before, without reading it again."""

    size: int
    """Bytes."""
    modified: int
    """Nanoseconds since the epoch."""
    inode: int


def stamp_of(path: str | Path | int) -> Stamp:
    """The stamp of the file that a path leads to, or that is open as this descriptor. Raises
    OSError, NotAFile among them."""
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise NotAFile(str(path))
    return Stamp(size=found.st_size, modified=found.st_mtime_ns, inode=found.st_ino)


def open_file(path: str | Path) -> BufferedReader:
    """A regular file, opened for reading. Raises OSError, NotAFile among them."""
    stamp_of(path)  # a device is not even opened
    # Should a FIFO have taken its place since, this does not wait for its writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        stamp_of(descriptor)
    except OSError as error:
        os.close(descriptor)
        raise NotAFile(path) from error
    return os.fdopen(descriptor, "rb")
