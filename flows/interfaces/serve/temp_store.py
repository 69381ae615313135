"""Holds a server's temporary folder.

It has uploads, frames, and outputs of halves, kept until their request is answered. It lies in
memory where there is room. A killed server leaves its folder behind. A starting server removes the
folders of processes that no longer exist.
"""

import itertools
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile

from artifacts.disk.faults import is_full
from artifacts.disk.files import delete_unlocked, own_folder
from artifacts.records.store import Store, open_store

MEMORY = Path("/dev/shm")
MIN_FREE_BYTES = 1 << 30
"""Bytes that must be free in memory. Containers may have only 64 MB there."""
PREFIX = "penstock-serve-"
ROOM_BYTES = 1 << 20
"""Bytes that a server must be able to write to be ready."""


class TempStore:
    """The temporary folder of one server."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store: Store = open_store(str(folder / "store"))
        self.others: list[Path] = []
        """Other folders that requests need room in."""
        self._numbers = itertools.count()

    def path(self, suffix: str = "") -> Path:
        """Return an unused path."""
        return self.folder / f"{next(self._numbers)}{suffix}"

    def has_room(self) -> bool:
        """Return whether ROOM_BYTES can be written here, and in the other folders."""
        try:
            for folder in (self.folder, *self.others):
                with TemporaryFile(dir=folder) as file:
                    os.posix_fallocate(file.fileno(), 0, ROOM_BYTES)
        except OSError as error:
            return not is_full(error)
        return True


@contextmanager
def temp_folder(fallback: Path) -> Iterator[TempStore]:
    """Yield a folder that is deleted after the block. It lies in memory, or in `fallback`."""
    with suppress(OSError):
        fallback.mkdir(parents=True, exist_ok=True)
    in_memory = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free >= MIN_FREE_BYTES
    place = MEMORY if in_memory else fallback
    for other in {MEMORY, fallback} - {place}:
        delete_unlocked(other, PREFIX)
    with own_folder(place, PREFIX) as folder:
        yield TempStore(folder)
