"""Renames a finished file to its final name without replacing an existing file."""

import ctypes
import errno
import os
from functools import cache
from pathlib import Path
from typing import Any

NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV)
"""Errors of a file system that makes no hard links, or not here."""
AT_FDCWD = -100
"""Names are relative to the working folder."""
RENAME_NOREPLACE = 1


def rename_noreplace(half: Path, final: Path) -> bool:
    """Give a finished file its name, unless another writer was first."""
    try:
        os.link(half, final)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        return _rename(half, final)  # a file system without hard links
    return True


def _rename(half: Path, final: Path) -> bool:
    """Do the same by a rename that replaces nothing. Who reads the first writer's object holds its
    offsets."""
    rename = _renameat2()
    if rename(AT_FDCWD, os.fsencode(half), AT_FDCWD, os.fsencode(final), RENAME_NOREPLACE) == 0:
        return True
    code = ctypes.get_errno()
    if code == errno.EEXIST:
        return False
    if code not in (errno.EINVAL, errno.ENOSYS):
        raise OSError(code, os.strerror(code), str(final))
    # One that knows no such rename either: what is there is seen, but for a moment.
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
