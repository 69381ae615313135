"""Renames a finished file to its final name without replacing an existing file."""

import ctypes
import errno
import os
from functools import cache
from pathlib import Path
from typing import Any

NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV)
"""Errors of a file system without hard links, or between file systems."""
AT_FDCWD = -100
"""Names are relative to the working folder."""
RENAME_NOREPLACE = 1


def rename_noreplace(half: Path, final: Path) -> bool:
    """Rename a finished file. Return False if another writer was first."""
    try:
        os.link(half, final)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        return _rename(half, final)  # no hard links here
    return True


def _rename(half: Path, final: Path) -> bool:
    """Do the same by a rename that replaces nothing. Readers rely on the first writer's offsets."""
    rename = _renameat2()
    if rename(AT_FDCWD, os.fsencode(half), AT_FDCWD, os.fsencode(final), RENAME_NOREPLACE) == 0:
        return True
    code = ctypes.get_errno()
    if code == errno.EEXIST:
        return False
    if code not in (errno.EINVAL, errno.ENOSYS):
        raise OSError(code, os.strerror(code), str(final))
    # No such rename here either: check first, which leaves a short race.
    if final.exists():
        return False
    os.replace(half, final)
    return True


@cache
def _renameat2() -> Any:
    return ctypes.CDLL(None, use_errno=True).renameat2


def sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot sync a folder
            raise
    finally:
        os.close(handle)
