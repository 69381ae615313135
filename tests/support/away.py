"""Disks that are mounted and unmounted during a test."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


class Disk:
    """A folder of files that is bound to a mount point."""

    def __init__(self, point: Path, files: Path) -> None:
        self.point = point
        self._files = files
        self.is_mounted = False

    def mount(self) -> None:
        done = subprocess.run(
            ["mount", "--bind", str(self._files), str(self.point)], capture_output=True, check=False
        )
        if done.returncode:
            pytest.skip("nothing can be mounted here")
        self.is_mounted = True

    def unmount(self) -> None:
        if self.is_mounted:
            subprocess.run(["umount", str(self.point)], check=True)
        self.is_mounted = False


@contextmanager
def disk(point: Path, files: Path) -> Iterator[Disk]:
    """Mount the files of a disk, or skip the test where nothing can be mounted."""
    point.mkdir(parents=True, exist_ok=True)
    files.mkdir(parents=True, exist_ok=True)
    found = Disk(point, files)
    found.mount()
    try:
        yield found
    finally:
        found.unmount()
