"""Stores the records of one kind and namespace in immutable pack files.

How it works:

1. A record is a key, JSON metadata and an optional payload. A pack is one object of the store with
   several records: a header that lists each record's offset, checksum and metadata, then the
   payloads.
2. A pack's name is the digest of its sorted keys. Two processes that make the same records
   therefore write the same name.
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
from artifacts.keys import digest_of
from artifacts.pack_object import (
    DamagedRecord,
    Place,
    damaged,
    entry_of,
    gone,
    head_extent,
    pack_head,
    places_in,
    read_header,
)
from artifacts.store import Store

PUT_TRIES = 3
"""How often a pack is written that goes away just when another writer's was to be taken."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One stored item: JSON metadata and, optionally, bytes."""

    key: str
    meta: dict[str, Any] = field(default_factory=dict)
    payload: bytes | memoryview = b""


class RecordSet:
    """All records of one kind and namespace in a store."""

    def __init__(self, store: Store, kind: str, namespace: str, *, look: bool = True) -> None:
        """Take the store; `look` says whether to see at once what is there."""
        self.store = store
        self.folder = f"{kind}/{namespace[:2]}/{namespace}"
        """Folder of its packs in the store."""
        self._places: dict[str, Place] = {}
        self._packs: set[str] = set()
        self._used: set[str] = set()
        """Packs whose use is noted already."""
        self._lock = threading.RLock()
        """Workers of one stage publish and drop at the same time; held while the books change."""
        if look:
            self.refresh()

    def refresh(self) -> None:
        """See what others have published, dropped or set aside since."""
        self.see(list(self.store.list(self.folder)))

    def see(self, names: Sequence[str]) -> None:
        """See the packs of these names, which are all that are there."""
        with self._lock:
            self._forget(self._packs.difference(names))
            new = [name for name in names if name not in self._packs]
            for name, head in self.store.heads(new, head_extent):
                with contextlib.suppress(DamagedRecord):
                    places = dict(places_in(self.store, name, head))
                    self._packs.add(name)
                    for key, place in places.items():
                        self._places.setdefault(key, place)

    def find(self, keys: Iterable[str]) -> None:
        """See the pack of these and no others, if somebody published it, and look at no other."""
        with contextlib.suppress(DamagedRecord, FileNotFoundError):
            self._book(name := self._name(keys), dict(read_header(self.store, name)))

    def keys(self) -> set[str]:
        return set(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def meta(self, key: str) -> dict[str, Any]:
        """Return the record's description, without reading its payload. Raises KeyError."""
        return self._places[key].meta

    def place(self, key: str) -> Place:
        """Return where the record lies. Raises KeyError."""
        return self._places[key]

    def read(self, key: str) -> Record:
        """Read the whole record, checked. Raises KeyError, or DamagedRecord after setting its pack
        aside."""
        place = self._places[key]
        payload = self._payload(place)
        if not place.fits(payload):
            place = self._looked_up_again(key, place)
            payload = self._payload(place)
            if not place.fits(payload):
                self._forget({place.pack})
                raise damaged(self.store, place.pack)
        self.use([key])
        return Record(key=key, meta=place.meta, payload=payload)

    def _looked_up_again(self, key: str, place: Place) -> Place:
        """Return where a record lies by the header of the pack that is there now. That may be
        another writer's than the one that was known. Raises DamagedRecord."""
        self._forget({place.pack})
        self.store.renew(place.pack)
        try:
            places = dict(read_header(self.store, place.pack))
        except FileNotFoundError as error:
            raise gone(self.store, place.pack) from error
        if key not in places:
            raise damaged(self.store, place.pack)
        self._book(place.pack, places)
        return places[key]

    def _payload(self, place: Place) -> bytes:
        try:
            return self.store.get(place.pack, place.offset, place.length)
        except FileNotFoundError as error:
            self._forget({place.pack})
            raise gone(self.store, place.pack) from error

    def use(self, keys: Iterable[str]) -> None:
        """Note that records are wanted still, so that others are the first to go for space."""
        packs = {self._places[key].pack for key in keys if key in self._places}
        for pack in packs - self._used:
            self.store.touch(pack)
        self._used |= packs

    def publish(self, records: Sequence[Record]) -> list[str]:
        """Store the records that are not there yet as one pack. Returns their keys, in order: none,
        if another writer was first, whose pack is then what this record set knows."""
        new = [record for record in records if record.key not in self._places]
        if not new:
            return []
        name = self._name(record.key for record in new)
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
        """Write a pack unless it is there, and know what lies there then. Says whether it was
        written. Raises EnvironmentFault."""
        for _ in range(PUT_TRIES):
            if self.store.put_if_absent(name, parts()):
                self._book(name, places)
                return True
            with contextlib.suppress(FileNotFoundError, DamagedRecord):
                self._book(name, dict(read_header(self.store, name)))
                return False
        raise EnvironmentFault(
            f"{self.store.url}/{name} can neither be written nor read",
            hint="See what lies there, and remove it; the same command then goes on",
        )

    def leave(self, keys: Iterable[str]) -> set[str]:
        """Forget records that are others' now. Returns the packs of which none is left here."""
        with self._lock:
            left = {self._places.pop(key).pack for key in keys if key in self._places}
            left -= {place.pack for place in self._places.values()} if left else set()
            self._packs -= left
        return left

    def drop(self, keys: Iterable[str]) -> None:
        """Forget records; a pack is deleted when none of its records is left."""
        with self._lock:
            for pack in self.leave(keys):
                self.store.delete(pack)

    def remove(self, keys: Iterable[str]) -> int:
        """Delete records for good. Packs that hold others too are written anew without them.
        Returns the bytes of the payloads."""
        with self._lock:
            wanted = {key: self._places[key] for key in keys if key in self._places}
            packs = {place.pack for place in wanted.values()}
            kept: dict[str, dict[str, Place]] = {pack: {} for pack in packs}
            for key, place in self._places.items():
                if place.pack in packs and key not in wanted:
                    kept[place.pack][key] = place
        for pack, places in kept.items():
            with contextlib.suppress(DamagedRecord):  # another process was faster, or it is no good
                self._move(places)
                self.store.delete(pack)
        self._forget(packs)
        return sum(place.length for place in wanted.values())

    def _move(self, places: Mapping[str, Place]) -> None:
        """Write records into a pack of their own, one payload in memory at a time. Raises
        DamagedRecord."""
        if not places:
            return
        name = self._name(places)
        entries = [entry_of(k, p.length, p.checksum, p.meta) for k, p in places.items()]
        head, moved = pack_head(name, entries)
        self._put(name, moved, lambda: itertools.chain([head], self._checked(places.values())))

    def _checked(self, places: Iterable[Place]) -> Iterator[bytes]:
        for place in places:
            payload = self._payload(place)
            if not place.fits(payload):
                raise damaged(self.store, place.pack)
            yield payload

    def _name(self, keys: Iterable[str]) -> str:
        name = digest_of(sorted(keys))
        return f"{self.folder}/{name[:2]}/{name}.pack"

    def _book(self, name: str, places: Mapping[str, Place]) -> None:
        with self._lock:
            self._packs.add(name)
            self._places.update(places)

    def _forget(self, packs: Set[str]) -> None:
        with self._lock:
            if packs:
                self._packs -= packs
                self._places = {k: p for k, p in self._places.items() if p.pack not in packs}


def stored_namespaces(store: Store, kind: str) -> set[str]:
    """Return the namespaces of one kind in which anything is stored, and some in which
    anything was."""
    return {name.rpartition("/")[2] for name in store.list(kind, levels=2)}


def _measured(payload: bytes | memoryview) -> tuple[int, str]:
    """Return the length of a payload in bytes, and its checksum."""
    return memoryview(payload).nbytes, hashlib.sha256(payload).hexdigest()
