"""File stamps, which detect whether a file changed since it was read.

Model files have a stamp of their own that includes the inode's change time: reading gigabytes again
is cheap compared with captions of a wrong model. Media stamps leave it out, because a backup or a
`chmod` changes it and would cause a whole media library to be read again. For the same reason they
leave out the inode on FUSE and CIFS, where each mount gives other inodes.
"""

import errno
import os
import time
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from artifacts.disk.mounts import mounts
from artifacts.disk.regular_files import refuse_odd

CHANGED = "changed"
"""Failure kind of a file that changed during the run. It is not remembered, since the old content
was not at fault."""
CHANGED_MESSAGE = "it was changed, replaced or removed after the run began"
CHANGED_HINT = "Run the same command again when nothing writes to it any more"


class FileChanged(OSError):
    """A file was written or replaced while it was read."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(errno.EBUSY, "it was changed while it was read", str(path))


INODES_CHANGE = ("fuse", "fuseblk", "cifs", "smb3", "smbfs")
"""Kinds of file systems that number their files anew with each mount. Those of FUSE may have a
suffix: `fuse.sshfs`. NFS and Lustre keep the numbers of the server."""


def keeps_inodes(device: int) -> bool:
    """Return whether the files of a device, as in `os.stat_result.st_dev`, keep their inodes when
    it is mounted again. One of an unknown kind does."""
    minute = int(time.monotonic()) // 60  # another file system may get the number later
    return _kind(device, minute).partition(".")[0] not in INODES_CHANGE


@lru_cache(maxsize=256)
def _kind(device: int, _minute: int) -> str:
    number = f"{os.major(device)}:{os.minor(device)}"
    return next((mount.kind for mount in mounts() if mount.device == number), "")


class Stamp(NamedTuple):
    """The metadata of a file when it was read. It stays equal as long as the file is neither
    written nor replaced."""

    size: int
    """Bytes."""
    modified: int
    """Nanoseconds since the epoch."""
    inode: int
    """0 where the file system does not keep it."""


def stamp_of(path: str | Path | int) -> Stamp:
    """Return the stamp of a file, by path or descriptor. Raises OSError, including NotAFile."""
    status = os.stat(path)
    refuse_odd(status.st_mode, str(path))
    inode = status.st_ino if keeps_inodes(status.st_dev) else 0
    return Stamp(size=status.st_size, modified=status.st_mtime_ns, inode=inode)


class ModelFileStamp(NamedTuple):
    """The metadata of a model file. Any write, replacement or restore of the file changes it."""

    size: int
    """Bytes."""
    modified: int
    """Nanoseconds since the epoch."""
    changed: int
    """Change time of the inode in nanoseconds since the epoch. Unlike `modified`, programs cannot
    set it."""
    inode: int
    hard_links: int
    """Number of its names."""

    def is_touched(self, before: "ModelFileStamp") -> bool:
        """Return whether only the change time, and maybe the number of names, differ from a stamp
        before. Either no byte changed, or the file was overwritten and its time set back."""
        return self == before._replace(changed=self.changed, hard_links=self.hard_links) != before

    def is_relinked(self, before: "ModelFileStamp") -> bool:
        """Return whether the number of names differs, and nothing else but the change time."""
        return self.is_touched(before) and self.hard_links != before.hard_links


def model_stamp_of(path: str | Path) -> ModelFileStamp:
    """Return the stamp of a model file. Raises OSError, including NotAFile."""
    status = os.stat(path)
    refuse_odd(status.st_mode, str(path))
    return _model_stamp(status)


def link_stamp_of(path: str | Path) -> ModelFileStamp | None:
    """Return the stamp of a link itself; None if it is not a link. Raises OSError."""
    return _model_stamp(os.lstat(path)) if os.path.islink(path) else None


def _model_stamp(status: os.stat_result) -> ModelFileStamp:
    return ModelFileStamp(
        size=status.st_size,
        modified=status.st_mtime_ns,
        changed=status.st_ctime_ns,
        inode=status.st_ino,
        hard_links=status.st_nlink,
    )
