"""Reads cached results from the store, stores new ones, and holds a server's temporary folder.

New results stay in memory first and are stored in groups in the background; one pack file per
request would be one file per request. Results that are lost when a server is killed are computed
again. The module runs no model.

The temporary folder has uploads, frames, and outputs of halves, kept until their request is
answered. It lies in memory where there is room. A killed server leaves its folder behind. A
starting server removes the folders of processes that no longer exist.
"""

import asyncio
import itertools
import os
import shutil
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile

from artifacts.disk.faults import is_full
from artifacts.disk.files import delete_unlocked, own_folder
from artifacts.errors import PenstockError
from artifacts.records.packs import Record, RecordUnion, record_sets_of
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


FLUSH_SECONDS = 5.0
FLUSH_RECORDS = 512
"""Number of new records that triggers a flush."""
REFRESH_SECONDS = 60.0
"""Interval at which records of other processes are looked up."""
MAX_KEYS = 200_000
"""Largest number of keys held in memory, about 1 KB each. No more are added until a restart."""
RECENT_BYTES = 64 << 20
"""Largest size in bytes of the records kept in memory."""
RECORD_BYTES = 1536
"""Memory in bytes of a record besides its payload."""


class RecordCache:
    """The cached records of one kind in several namespaces. New ones go to the first."""

    def __init__(self, store: Store, kind: str, *namespaces: str) -> None:
        places = [(kind, namespace) for namespace in dict.fromkeys(namespaces)]
        self._records = RecordUnion(record_sets_of(store, *places))
        self._recent: OrderedDict[str, Record] = OrderedDict()
        self._recent_bytes = 0
        self.unsaved: dict[str, Record] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._recent or key in self.unsaved or key in self._records

    async def finds(self, key: str) -> bool:
        """Return whether a record is there, also if another process has just stored it alone."""
        if key not in self:
            await asyncio.to_thread(self._records.look_up_pack, [key])
        return key in self

    async def read(self, key: str) -> Record | None:
        """Return a cached record, or None."""
        record = self._recent.get(key) or self.unsaved.get(key)
        if record is None and key in self._records:
            try:
                record = await asyncio.to_thread(self._records.read, key)
            except (KeyError, PenstockError):  # it was deleted: compute it again
                return None
            self.remember(record)
        return record

    def keep(self, records: Iterable[Record]) -> None:
        """Cache new records. They are stored at the next flush."""
        for record in records:
            if record.key not in self:
                self.unsaved[record.key] = record
            self.remember(record)

    def save(self) -> None:
        """Store the new records. Raises PenstockError."""
        records = dict(self.unsaved)
        self._records.publish(list(records.values()))
        if len(self._records) > MAX_KEYS:
            self._records.forget(records)
        for key in records:
            self.unsaved.pop(key, None)

    def refresh(self) -> None:
        """Look up records that other processes have stored, unless too many keys are known."""
        if len(self._records) <= MAX_KEYS:
            self._records.refresh()

    def remember(self, record: Record) -> None:
        """Keep a record in memory. The least recently used ones are evicted."""
        if self._recent.pop(record.key, None) is None:
            self._recent_bytes += RECORD_BYTES + len(record.payload)
        self._recent[record.key] = record
        while self._recent_bytes > RECENT_BYTES:
            _, evicted = self._recent.popitem(last=False)
            self._recent_bytes -= RECORD_BYTES + len(evicted.payload)


class RecordCacheFlusher:
    """Writes the results of several caches to the store at intervals."""

    def __init__(self, log: Callable[[str], None]) -> None:
        self._log = log
        self._every: list[RecordCache] = []
        self._last_error = ""

    def of(self, store: Store, kind: str, *namespaces: str) -> RecordCache:
        """Return the cache of one kind in these namespaces. It is flushed with the others."""
        kept = RecordCache(store, kind, *namespaces)
        self._every.append(kept)
        return kept

    async def run(self) -> None:
        """Flush at intervals until cancelled."""
        passed = looked = 0.0
        while True:
            await asyncio.sleep(1.0)
            passed, looked = passed + 1.0, looked + 1.0
            if passed >= FLUSH_SECONDS or any(
                len(kept.unsaved) >= FLUSH_RECORDS for kept in self._every
            ):
                passed = 0.0
                await self.save()
            if looked >= REFRESH_SECONDS:
                looked = 0.0
                for kept in self._every:
                    await asyncio.to_thread(kept.refresh)

    async def save(self) -> None:
        """Store all new records. On failure they are dropped, and serving continues."""
        for kept in self._every:
            if not kept.unsaved:
                continue
            try:
                await asyncio.to_thread(kept.save)
                self._last_error = ""
            except (PenstockError, OSError) as error:
                kept.unsaved.clear()
                if str(error) != self._last_error:
                    self._log(f"results are not stored: {error}")
                self._last_error = str(error)
