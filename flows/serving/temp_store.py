"""The temporary folder of a server: uploads, frames, and outputs of halves, kept until their
request is answered. It lies in memory where there is room.

A killed server leaves its folder behind. A starting server removes the folders of processes that no
longer exist.
"""

import itertools
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp

from artifacts.files import delete_folders_of_dead
from artifacts.store import Store, open_store

MEMORY = Path("/dev/shm")
MIN_FREE_BYTES = 1 << 30
"""Bytes that must be free in memory. Containers may have only 64 MB there."""
PREFIX = "penstock-serve-"


class TempStore:
    """The temporary folder of one server."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store: Store = open_store(str(folder / "store"))
        self._numbers = itertools.count()

    def path(self, suffix: str = "") -> Path:
        """Return an unused path."""
        return self.folder / f"{next(self._numbers)}{suffix}"


@contextmanager
def temp_folder(fallback: Path) -> Iterator[TempStore]:
    """Yield a folder that is deleted after the block. It lies in memory, or in `fallback`."""
    with suppress(OSError):
        fallback.mkdir(parents=True, exist_ok=True)
    for place in (MEMORY, fallback):
        delete_folders_of_dead(place, PREFIX)
    in_memory = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free >= MIN_FREE_BYTES
    folder = Path(mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=MEMORY if in_memory else fallback))
    try:
        yield TempStore(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
