"""Says what the file system of a file lacks: links, locks, inodes that stay.

Linux lists the kind of each mount with the device number that `stat` returns for its files.
"""

import contextlib
import errno
import os
import time
from functools import lru_cache
from pathlib import Path

UNSUPPORTED = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
"""Errors with which a file system refuses an operation that it lacks, such as a hard link, a lock,
or a rename that replaces nothing."""
MOUNTS = Path("/proc/self/mountinfo")
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
    with contextlib.suppress(OSError):
        for line in MOUNTS.read_text(encoding="utf-8", errors="replace").split("\n"):
            mount, _, source = line.partition(" - ")
            if mount.split()[2:3] == [number]:
                return source.split()[0]
    return ""
