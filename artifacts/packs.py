"""Stores the records of one kind and namespace in immutable pack files.

How it works:

1. A record is a key, JSON metadata and an optional payload. A pack is one object of the store with
   several records: a header that lists each record's offset, checksum and metadata, then the
   payloads.
2. A pack's name is the digest of its folder and its sorted keys. Two processes that make the same
   records therefore write the same name, and whatever lies under a name has exactly its keys and
   belongs to its folder, or is set aside as damaged.
3. `publish` drops the records that are known already, and writes the others as one pack with
   put-if-absent. The first writer wins; the second adopts the pack that is there.
4. There is no separate index. A record set lists its folder, reads the headers of new packs, and
   keeps a map from key to place. `refresh` repeats this and forgets packs that are gone.
5. `read` fetches the payload by offset and length and checks it against the SHA-256 of the header.
   On a mismatch it reads the header again, since another process may have replaced the pack.
6. A pack that still does not match is moved to `quarantine/`, and DamagedRecord is raised, so that
   the next run makes its records again.
7. `drop` forgets records and deletes a pack once none of its records is left. `remove` frees the
   bytes at once: it writes the records to be kept into a new pack, then deletes the old one.
8. Each use of a pack updates its access time once, so that garbage collection removes unused packs
   first.
"""

import contextlib
import hashlib
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from artifacts.errors import EnvironmentFault
from artifacts.pack_object import (
    DamagedRecord,
    Place,
    damaged,
    entry_of,
    gone,
    head_extent,
    pack_head,
    pack_name,
    places_in,
    read_header,
)
from artifacts.store import Store

PUT_TRIES = 3
"""Attempts to write a pack. An existing pack may be deleted just before it is read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One stored item: JSON metadata and, optionally, bytes."""

    key: str
    meta: dict[str, Any] = field(default_factory=dict)
    payload: bytes | memoryview = b""


class RecordSet:
    """All records of one kind and namespace in a store."""

    def __init__(self, store: Store, kind: str, namespace: str, *, look: bool = True) -> None:
        """Take the store. `look` says whether to list the existing packs at once."""
        self.store = store
        self.folder = f"{kind}/{namespace[:2]}/{namespace}"
        """Folder of its packs in the store."""
        self._places: dict[str, Place] = {}
        self._packs: set[str] = set()
        self._used: set[str] = set()
        """Packs whose access time was updated already."""
        self._lock = threading.RLock()
        """Held while the maps change: threads of one stage publish and drop at the same time."""
        if look:
            self.refresh()

    def refresh(self) -> None:
        """Look up what other processes have published, dropped or quarantined."""
        self.update(list(self.store.list(self.folder)))

    def update(self, names: Sequence[str]) -> None:
        """Update the maps to this list of all existing packs."""
        with self._lock:
            self._forget(self._packs.difference(names))
            new = [name for name in names if name not in self._packs]
            for name, head in self.store.heads(new, head_extent):
                with contextlib.suppress(DamagedRecord):
                    places = dict(places_in(self.store, name, head))
                    self._packs.add(name)
                    for key, place in places.items():
                        self._places.setdefault(key, place)

    def look_up(self, keys: Iterable[str]) -> None:
        """Look up the pack of exactly these keys, without listing the folder."""
        with contextlib.suppress(DamagedRecord, FileNotFoundError):
            self._record(name := pack_name(self.folder, keys), dict(read_header(self.store, name)))

    def keys(self) -> set[str]:
        return set(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def meta(self, key: str) -> dict[str, Any]:
        """Return a record's metadata, without reading its payload. Raises KeyError."""
        return self._places[key].meta

    def place(self, key: str) -> Place:
        """Return the location of a record. Raises KeyError."""
        return self._places[key]

    def read(self, key: str) -> Record:
        """Read and check a record. A damaged pack is quarantined. Raises KeyError,
        DamagedRecord."""
        place, payload = self._places[key], None
        with contextlib.suppress(FileNotFoundError):
            payload = self.store.get(place.pack, place.offset, place.length)
        if payload is None or not place.fits(payload):
            place = self._look_up_again(key, place)
            payload = self._payload(place)
            if not place.fits(payload):
                self._forget({place.pack})
                raise damaged(self.store, place.pack)
        self.touch([key])
        return Record(key=key, meta=place.meta, payload=payload)

    def _look_up_again(self, key: str, place: Place) -> Place:
        """Return a record's location from the current header of its pack, which another process may
        have replaced, or moved without other records into a new pack. Raises DamagedRecord."""
        self._forget({place.pack})
        self.store.renew(place.pack)
        try:
            places = dict(read_header(self.store, place.pack))
        except FileNotFoundError as error:
            self.refresh()
            if key in self._places:
                return self._places[key]
            raise gone(self.store, place.pack) from error
        if key not in places:
            raise damaged(self.store, place.pack)
        self._record(place.pack, places)
        return places[key]

    def _payload(self, place: Place) -> bytes:
        try:
            return self.store.get(place.pack, place.offset, place.length)
        except FileNotFoundError as error:
            self._forget({place.pack})
            raise gone(self.store, place.pack) from error

    def touch(self, keys: Iterable[str]) -> None:
        """Update the access time of records' packs, so that garbage collection removes others
        first."""
        packs = {self._places[key].pack for key in keys if key in self._places}
        for pack in packs - self._used:
            self.store.touch(pack)
        self._used |= packs

    def publish(self, records: Sequence[Record]) -> list[str]:
        """Store new records as one pack, and return their keys in order. Return none if another
        process wrote the pack first; its pack is then used."""
        new = [record for record in records if record.key not in self._places]
        if not new:
            return []
        name = pack_name(self.folder, (record.key for record in new))
        entries = [entry_of(r.key, *_measured(r.payload), r.meta) for r in new]
        head, places = pack_head(name, entries)
        if not self._put(name, places, lambda: [head, *(record.payload for record in new)]):
            return []
        return [record.key for record in new]

    def _put(
        self,
        name: str,
        places: Mapping[str, Place],
        parts: Callable[[], Iterable[bytes | memoryview]],
    ) -> bool:
        """Write a pack unless it exists, and record its places. Return whether it was written.
        Raises EnvironmentFault."""
        for _ in range(PUT_TRIES):
            if self.store.put_if_absent(name, parts()):
                self._record(name, places)
                return True
            with contextlib.suppress(FileNotFoundError, DamagedRecord):
                self._record(name, dict(read_header(self.store, name)))
                return False
        raise EnvironmentFault(
            f"{self.store.url}/{name} can neither be written nor read",
            hint="Check that object and remove it; the same command then continues",
        )

    def forget(self, keys: Iterable[str]) -> set[str]:
        """Forget records. Return the packs that have no known records left."""
        with self._lock:
            left = {self._places.pop(key).pack for key in keys if key in self._places}
            left -= {place.pack for place in self._places.values()} if left else set()
            self._packs -= left
        return left

    def drop(self, keys: Iterable[str]) -> None:
        """Forget records, and delete packs that have none left."""
        with self._lock:
            for pack in self.forget(keys):
                self.store.delete(pack)

    def remove(self, keys: Iterable[str]) -> int:
        """Delete records for good. Packs with other records are rewritten without them. Return the
        bytes of the deleted payloads."""
        with self._lock:
            deleted = {key: self._places[key] for key in keys if key in self._places}
            packs = {place.pack for place in deleted.values()}
            kept: dict[str, dict[str, Place]] = {pack: {} for pack in packs}
            for key, place in self._places.items():
                if place.pack in packs and key not in deleted:
                    kept[place.pack][key] = place
        for pack, places in kept.items():
            with contextlib.suppress(
                DamagedRecord
            ):  # already replaced by another process, or damaged
                self._move(places)
                self.store.delete(pack)
        self._forget(packs)
        return sum(place.length for place in deleted.values())

    def _move(self, places: Mapping[str, Place]) -> None:
        """Write records into a new pack, one payload in memory at a time. Raises DamagedRecord."""
        if not places:
            return
        name = pack_name(self.folder, places)
        entries = [entry_of(k, p.length, p.checksum, p.meta) for k, p in places.items()]
        head, moved = pack_head(name, entries)
        self._put(name, moved, lambda: itertools.chain([head], self._checked(places.values())))

    def _checked(self, places: Iterable[Place]) -> Iterator[bytes]:
        for place in places:
            payload = self._payload(place)
            if not place.fits(payload):
                raise damaged(self.store, place.pack)
            yield payload

    def _record(self, name: str, places: Mapping[str, Place]) -> None:
        with self._lock:
            self._packs.add(name)
            self._places.update(places)

    def _forget(self, packs: Set[str]) -> None:
        with self._lock:
            if packs:
                self._packs -= packs
                self._places = {k: p for k, p in self._places.items() if p.pack not in packs}


def stored_namespaces(store: Store, kind: str) -> set[str]:
    """Return the namespaces of one kind that hold records, or held some."""
    return {name.rpartition("/")[2] for name in store.list(kind, levels=2)}


def _measured(payload: bytes | memoryview) -> tuple[int, str]:
    """Return the length in bytes and the checksum of a payload."""
    return memoryview(payload).nbytes, hashlib.sha256(payload).hexdigest()
