"""Reads cached results from the store, and stores new ones.

New results stay in memory first and are stored in groups in the background; one pack file per
request would be one file per request. Results that are lost when a server is killed are computed
again. The module runs no model.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable

from artifacts.errors import PenstockError
from artifacts.records.packs import Record, RecordUnion, record_sets_of
from artifacts.records.store import Store

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
        self._caches: list[RecordCache] = []
        self._last_error = ""

    def of(self, store: Store, kind: str, *namespaces: str) -> RecordCache:
        """Return the cache of one kind in these namespaces. It is flushed with the others."""
        cache = RecordCache(store, kind, *namespaces)
        self._caches.append(cache)
        return cache

    async def run(self) -> None:
        """Flush at intervals until cancelled."""
        passed = looked = 0.0
        while True:
            await asyncio.sleep(1.0)
            passed, looked = passed + 1.0, looked + 1.0
            if passed >= FLUSH_SECONDS or any(
                len(cache.unsaved) >= FLUSH_RECORDS for cache in self._caches
            ):
                passed = 0.0
                await self.save()
            if looked >= REFRESH_SECONDS:
                looked = 0.0
                for cache in self._caches:
                    await asyncio.to_thread(cache.refresh)

    async def save(self) -> None:
        """Store all new records. On failure they are dropped, and serving continues."""
        for cache in self._caches:
            if not cache.unsaved:
                continue
            try:
                await asyncio.to_thread(cache.save)
                self._last_error = ""
            except (PenstockError, OSError) as error:
                cache.unsaved.clear()
                if str(error) != self._last_error:
                    self._log(f"results are not stored: {error}")
                self._last_error = str(error)
