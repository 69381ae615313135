"""Gives a file a second name in another folder, so that no large file is stored twice."""

import contextlib
import os
import shutil
import stat
from pathlib import Path

from artifacts.files import HALF
from artifacts.store import fault_of


def link(source: Path, target: Path, *, symbolic: bool = True) -> bool:
    """Let `target` be the file at `source`, whatever was there: by a hard link, else a `symbolic`
    one, else a copy; return whether it is a copy. Raises EnvironmentFault."""
    # A link to a link could break when the person moves the first one.
    real = os.path.realpath(source)
    half = target.with_name(f"{HALF}{target.name}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            half.unlink()  # of a run that was killed
        copied = _make(real, half, symbolic=symbolic)
        os.replace(half, target)
    except OSError as error:
        raise fault_of(error, target.parent) from error
    return copied


def _make(real: str, half: Path, *, symbolic: bool) -> bool:
    # Another disk, a file of somebody else, a file system without links: each says so differently.
    with contextlib.suppress(OSError):
        os.link(real, half)
        return False
    if symbolic:
        with contextlib.suppress(OSError):
            os.symlink(real, half)
            return False
    shutil.copy2(real, half)
    return True


def is_linked(source: Path, target: Path) -> bool:
    """Return whether `target` is the file at `source`, or a copy of it that nobody changed."""
    try:
        if os.path.samefile(source, target):
            return True
        one, other = os.stat(source), os.stat(target)
    except OSError:
        return False
    return (one.st_size, one.st_mtime_ns) == (other.st_size, other.st_mtime_ns)


def is_spare(target: Path) -> bool:
    """Return whether nothing is lost with a name: nothing is there, or it has another name."""
    try:
        found = target.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    return stat.S_ISLNK(found.st_mode) or (stat.S_ISREG(found.st_mode) and found.st_nlink > 1)
