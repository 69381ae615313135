"""Reads cached results from the store, and stores new ones. Runs no model.

New results stay in memory first and are stored in groups in the background; one pack file per
request would be one file per request. Results that are lost when a server is killed are computed
again.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable

from artifacts.errors import PenstockError
from artifacts.packs import Record, RecordSet
from artifacts.store import Store

FLUSH_SECONDS = 5.0
FLUSH_RECORDS = 512
"""Records after which they are stored at once."""
LOOK_SECONDS = 60.0
"""How often it is looked what others have stored."""
MOST_KNOWN = 200_000
"""Records beyond which no more are known until the next start: each takes about a KB."""
RECENT_BYTES = 64 << 20
"""Bytes of records that are kept in memory."""
RECORD_BYTES = 1536
"""Bytes that a record takes in memory beside its payload."""


class RecordCache:
    """The cached records of one kind and namespace."""

    def __init__(self, store: Store, kind: str, namespace: str) -> None:
        self._records = RecordSet(store, kind, namespace)
        self._recent: OrderedDict[str, Record] = OrderedDict()
        self._recent_bytes = 0
        self.unsaved: dict[str, Record] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._recent or key in self.unsaved or key in self._records

    async def read(self, key: str) -> Record | None:
        """Return a record, if it was made before."""
        found = self._recent.get(key) or self.unsaved.get(key)
        if found is None and key in self._records:
            try:
                found = await asyncio.to_thread(self._records.read, key)
            except (KeyError, PenstockError):  # gone meanwhile: it is made again
                return None
            self.remember(found)
        return found

    def keep(self, records: Iterable[Record]) -> None:
        """Remember what was made, and have it stored."""
        for record in records:
            if record.key not in self:
                self.unsaved[record.key] = record
            self.remember(record)

    def save(self) -> None:
        """Store what is not stored yet. Raises PenstockError."""
        records = dict(self.unsaved)
        self._records.publish(list(records.values()))
        if len(self._records) > MOST_KNOWN:
            self._records.leave(records)
        for key in records:
            self.unsaved.pop(key, None)

    def look(self) -> None:
        """See what others have stored since, unless too much is known already."""
        if len(self._records) <= MOST_KNOWN:
            self._records.refresh()

    def remember(self, record: Record) -> None:
        """Keep a record in memory for a while."""
        if record.key in self._recent:
            self._recent[record.key] = record
            self._recent.move_to_end(record.key)
            return
        self._recent[record.key] = record
        self._recent_bytes += RECORD_BYTES + len(record.payload)
        while self._recent_bytes > RECENT_BYTES:
            _, gone = self._recent.popitem(last=False)
            self._recent_bytes -= RECORD_BYTES + len(gone.payload)


class RecordCacheFlusher:
    """Writes the results of several caches to the store at intervals."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._every: list[RecordCache] = []
        self._trouble = ""

    def of(self, store: Store, kind: str, namespace: str) -> RecordCache:
        """Return the records of one kind and namespace, looked after."""
        kept = RecordCache(store, kind, namespace)
        self._every.append(kept)
        return kept

    async def run(self) -> None:
        """Go on until cancelled."""
        passed = looked = 0.0
        while True:
            await asyncio.sleep(1.0)
            passed, looked = passed + 1.0, looked + 1.0
            if passed >= FLUSH_SECONDS or any(
                len(kept.unsaved) >= FLUSH_RECORDS for kept in self._every
            ):
                passed = 0.0
                await self.save()
            if looked >= LOOK_SECONDS:
                looked = 0.0
                for kept in self._every:
                    await asyncio.to_thread(kept.look)

    async def save(self) -> None:
        """Store all that is not stored. Where that fails, serving goes on without."""
        for kept in self._every:
            if not kept.unsaved:
                continue
            try:
                await asyncio.to_thread(kept.save)
                self._trouble = ""
            except PenstockError as error:
                kept.unsaved.clear()
                if error.message != self._trouble:
                    self._say(f"what is made is not kept: {error}")
                self._trouble = error.message
