"""Tells files that were deleted from those whose disk or folder is away.

A run notes the mount points of what it reads, each with its kind of file system. A file that is
missing later is away if one of these, that it lies below, is not mounted, if a folder that should
hold it cannot be read, is empty or is not there, or if its disk reports another fault. Else it was
deleted.
"""

import contextlib
import errno
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

MOUNTS = Path("/proc/self/mountinfo")
EMPTY = "the folder is empty"
GONE = (errno.ENOENT, errno.ENOTDIR)
"""Errors of a file that is not there. Others are faults of its disk, or say that it may not be
seen."""


class Mount(NamedTuple):
    """One line of `MOUNTS`."""

    device: str
    """Major and minor number: `8:1`."""
    point: str
    """Absolute path."""
    kind: str
    """File system, such as `ext4` or `fuse.sshfs`."""


def mounts() -> Iterator[Mount]:
    """Yield what is mounted; nothing if the system does not say."""
    with contextlib.suppress(OSError):
        for line in MOUNTS.read_text(encoding="utf-8", errors="replace").split("\n"):
            mount, _, source = line.partition(" - ")
            fields = mount.split(" ")
            if len(fields) > 4 and source:
                point = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), fields[4])
                yield Mount(fields[2], point, source.split(" ")[0])


def noted_mounts(earlier: Mapping[str, str], folders: Iterable[str]) -> dict[str, str]:
    """Return mount point → file system of the media in these folders, and of earlier ones that are
    not mounted now."""
    now = {each.point: each.kind for each in mounts()}
    above = {str(each) for folder in folders for each in _above(folder)}
    found = {point: now[point] for point in above & now.keys() if point != "/"}
    away = (item for item in earlier.items() if item not in now.items() and item[0] not in above)
    return {**dict(sorted(found.items())), **dict(away)}


def _above(folder: str) -> tuple[Path, ...]:
    real = Path(os.path.realpath(folder))
    return (real, *real.parents)


class MissingFiles:
    """Says which files that are not found may be there again later. It looks at each folder
    once."""

    def __init__(self, noted: Mapping[str, str]) -> None:
        """`noted`: mount point → file system when the files were there."""
        now = {(each.point, each.kind) for each in mounts()}
        self.unmounted = {point: kind for point, kind in noted.items() if (point, kind) not in now}
        """Noted mount points that are not mounted now → their file systems."""
        self._faults: dict[str, str] = {}
        """Folder → why it cannot be read; empty if it can."""

    def why_away(self, path: str, folders: Iterable[str]) -> tuple[str, str] | None:
        """Return the folder or mount point that is away, and why; None for a file that is there, or
        was deleted. `folders`: those that hold the file, and are there unless they are away. A file
        that is there is away, too, if its folder cannot be listed: no run would find it."""
        try:
            os.lstat(path)
            folders = [os.path.dirname(path), *folders]
        except OSError as error:
            if error.errno not in GONE:
                return os.path.dirname(path), os.strerror(error.errno or 0)
        for point in map(str, _above(os.path.dirname(path)) if self.unmounted else ()):
            if point in self.unmounted:
                return point, f"not mounted ({self.unmounted[point]})"
        faults = ((folder, self._fault_of(folder)) for folder in folders)
        return next((found for found in faults if found[1]), None)

    def _fault_of(self, folder: str) -> str:
        if folder not in self._faults:
            try:
                with os.scandir(folder) as inside:  # an empty one may be where a disk belongs
                    self._faults[folder] = "" if next(inside, None) else EMPTY
            except OSError as error:
                self._faults[folder] = os.strerror(error.errno or 0)
        return self._faults[folder]


def may_have_moved(why: str) -> bool:
    """Return whether files that are away for this reason may be under another name now."""
    return why in (EMPTY, *map(os.strerror, GONE))
