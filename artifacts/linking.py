"""Gives a file a second name in another folder, so that no large file is stored twice."""

import contextlib
import os
import shutil
import stat
from pathlib import Path

from artifacts.files import HALF, replace_file
from artifacts.regular_files import refuse_links
from artifacts.store import fault_of


def link(source: Path, target: Path, *, symbolic: bool = True) -> bool:
    """Make `target` the same file as `source`, replacing what was there: a hard link, else a
    `symbolic` one, else a copy. Return whether it is a copy. Raises EnvironmentFault."""
    # Resolve links: a link to a link breaks when the user moves the first one.
    real = os.path.realpath(source)
    half = target.with_name(f"{HALF}{target.name}")
    try:
        refuse_links(target.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            half.unlink()  # from a killed run
        copied = _make(real, half, symbolic=symbolic)
        replace_file(half, target)
    except OSError as error:
        raise fault_of(error, target.parent) from error
    return copied


def _make(real: str, half: Path, *, symbolic: bool) -> bool:
    # Another disk, another owner or a file system without links fail with different errors.
    with contextlib.suppress(OSError):
        os.link(real, half)
        return False
    if symbolic:
        with contextlib.suppress(OSError):
            os.symlink(real, half)
            return False
    shutil.copyfile(real, half)
    with contextlib.suppress(OSError):  # of a disk without permissions; it sets the time before
        shutil.copystat(real, half)
    return True


def is_linked(source: Path, target: Path) -> bool:
    """Return whether `target` is the file at `source`, or an unchanged copy of it."""
    try:
        if os.path.samefile(source, target):
            return True
        one, other = os.stat(source), os.stat(target)
    except OSError:
        return False
    return (one.st_size, one.st_mtime_ns) == (other.st_size, other.st_mtime_ns)


def is_spare(target: Path) -> bool:
    """Return whether deleting `target` loses nothing: it is absent, or the file has another
    name."""
    try:
        found = target.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    return stat.S_ISLNK(found.st_mode) or (stat.S_ISREG(found.st_mode) and found.st_nlink > 1)
