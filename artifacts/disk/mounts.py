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
    mounted = {mount.point: mount.kind for mount in mounts()}
    parents = {str(parent) for folder in folders for parent in _with_parents(folder)}
    points = sorted(parents & mounted.keys() - {"/"})
    unmounted = {
        point: kind
        for point, kind in earlier.items()
        if (point, kind) not in mounted.items() and point not in parents
    }
    return {point: mounted[point] for point in points} | unmounted


def _with_parents(folder: str) -> tuple[Path, ...]:
    real = Path(os.path.realpath(folder))
    return (real, *real.parents)


class Absence(NamedTuple):
    """Why a file is not found."""

    folder: str
    """The folder or mount point that is away."""
    reason: str
    may_have_moved: bool = False
    """Whether its files may be under another name now."""


DELETED = Absence("", "", may_have_moved=True)
"""The absence of a file that was deleted, or moved: nothing that should hold it is away."""


class MissingFiles:
    """Tells why files are not found. It looks at each folder once."""

    def __init__(self, noted: Mapping[str, str]) -> None:
        """`noted`: mount point → file system when the files were there."""
        mounted = {(mount.point, mount.kind) for mount in mounts()}
        self._unmounted = {p: kind for p, kind in noted.items() if (p, kind) not in mounted}
        self._absences: dict[str, Absence | None] = {}
        """Folder → why its files cannot be found; None: it can be listed, and is not empty."""

    def absence_of(self, path: str, folders: Iterable[str]) -> Absence | None:
        """Return why a file is not found; None for one that is there. `folders` should hold the
        file. A file that is there is absent, too, if its folder cannot be listed: no run would find
        it."""
        is_there = True
        try:
            os.lstat(path)
            folders = [os.path.dirname(path), *folders]
        except OSError as error:
            if error.errno not in GONE:
                return Absence(os.path.dirname(path), os.strerror(error.errno or 0))
            is_there = False
        for parent in map(str, _with_parents(os.path.dirname(path)) if self._unmounted else ()):
            if parent in self._unmounted:
                return Absence(parent, f"not mounted ({self._unmounted[parent]})")
        absences = filter(None, map(self._absence_of_folder, folders))
        return next(absences, None if is_there else DELETED)

    def _absence_of_folder(self, folder: str) -> Absence | None:
        if folder not in self._absences:
            absence = None
            try:
                with os.scandir(folder) as entries:
                    if next(entries, None) is None:  # a disk may belong there
                        absence = Absence(folder, "the folder is empty", may_have_moved=True)
            except OSError as error:
                is_gone = error.errno in GONE
                absence = Absence(folder, os.strerror(error.errno or 0), may_have_moved=is_gone)
            self._absences[folder] = absence
        return self._absences[folder]
