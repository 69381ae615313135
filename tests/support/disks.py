"""Small disks, which fill up soon."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def mount(options: str, folder: Path) -> list[str]:
    return ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """Make a folder on a disk of this size, or skip the test where none can be mounted."""
    folder.mkdir()
    made = subprocess.run(mount(f"size={size}", folder), capture_output=True, check=False)
    if made.returncode:
        pytest.skip("no disk can be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
