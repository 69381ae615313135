"""The folder of files that a store's users keep next to its objects."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryFile

from artifacts.keys import digest_of
from artifacts.paths import user_state

TEMPORARY = "tmp"
"""Folder of half-written files, in the same place so that a rename never crosses file systems."""
STALE_SECONDS = 3600.0
"""No writer takes so long for one file: what is older was left by one that died."""


def state_folder(url: str) -> Path:
    """Return the folder of a store that is none itself: this user's, on this machine."""
    return user_state() / "stores" / digest_of(url)


def clock_of(folder: Path) -> float:
    """Return the time by the clock that dates files there, in seconds since the epoch. It may be
    another machine's."""
    half = folder / TEMPORARY
    try:
        half.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=half) as probe:
            return os.fstat(probe.fileno()).st_mtime
    except OSError:  # nothing can be written, and nothing will be deleted
        return time.time()


def left_behind(folder: Path, within: str = TEMPORARY) -> Iterator[Path]:
    """Yield half-written files whose writers died, or files of another folder that nobody has used
    for as long."""
    now = clock_of(folder)
    for half in (folder / within).glob("*"):
        with contextlib.suppress(FileNotFoundError):  # another run swept first
            if half.lstat().st_mtime < now - STALE_SECONDS:
                yield half
