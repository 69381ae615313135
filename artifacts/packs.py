"""Records of one kind and scope, several to a store object, checksummed; knows nothing of what the
records mean.

A pack is one immutable object: magic, header length, header checksum, a JSON header that names
every record with its
place, checksum and description, then the payloads. What is done is read off the headers; there is
no other book.
"""

import contextlib
import hashlib
import itertools
import json
import struct
import threading
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from artifacts.errors import EnvironmentFault
from artifacts.keys import digest_of
from artifacts.store import Store

MAGIC = b"PENSTOCK"
LEAD = struct.Struct("<8sQ32s")
"""Magic, length of the header in bytes, SHA-256 of the header."""
FIRST_READ = 1 << 14
"""Bytes read of a pack at first: most headers are shorter, so that one read is enough."""
QUARANTINE = "quarantine"


class DamagedRecord(EnvironmentFault):
    """A stored record is gone or is not what it was, and has to be made again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One stored thing: a description that JSON can hold and, maybe, bytes."""

    key: str
    meta: dict[str, Any] = field(default_factory=dict)
    payload: bytes | memoryview = b""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Place:
    pack: str
    meta: dict[str, Any]
    offset: int
    length: int
    checksum: str


class Shelf:
    """All records of one kind and scope in a store."""

    def __init__(self, store: Store, kind: str, scope: str) -> None:
        self._store = store
        self._folder = f"{kind}/{scope[:2]}/{scope}"
        self._places: dict[str, _Place] = {}
        self._packs: set[str] = set()
        self._used: set[str] = set()
        """Packs whose use is noted already."""
        self._lock = threading.RLock()
        """Workers of one stage publish and drop at the same time; held while the books change."""
        self.refresh()

    def refresh(self) -> None:
        """See what others have published, dropped or set aside since."""
        names = list(self._store.list(self._folder))
        with self._lock:
            self._forget(self._packs.difference(names))
            for name in names:
                if name in self._packs:
                    continue
                try:
                    places = list(read_header(self._store, name))
                except (DamagedRecord, FileNotFoundError):
                    continue
                self._packs.add(name)
                for key, place in places:
                    self._places.setdefault(key, place)

    def keys(self) -> set[str]:
        return set(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def meta(self, key: str) -> dict[str, Any]:
        """The record's description, without reading its payload. Raises KeyError."""
        return self._places[key].meta

    def size(self, key: str) -> int:
        """Bytes of the record's payload. Raises KeyError."""
        return self._places[key].length

    def read(self, key: str) -> Record:
        """The whole record, checked. Raises KeyError, or DamagedRecord after setting its pack
        aside."""
        place = self._places[key]
        try:
            payload = self._store.get(place.pack, place.offset, place.length)
        except FileNotFoundError as error:
            self._forget({place.pack})
            raise DamagedRecord(
                f"{self._store.url}/{place.pack} is gone",
                hint="Run the same command again: it makes only that part anew",
            ) from error
        if len(payload) != place.length or hashlib.sha256(payload).hexdigest() != place.checksum:
            self._forget({place.pack})
            raise set_aside(self._store, place.pack)
        self.use([key])
        return Record(key=key, meta=place.meta, payload=payload)

    def use(self, keys: Iterable[str]) -> None:
        """Note that records are wanted still, so that others are the first to go for space."""
        packs = {self._places[key].pack for key in keys if key in self._places}
        for pack in packs - self._used:
            self._store.touch(pack)
        self._used |= packs

    def publish(self, records: Sequence[Record]) -> list[str]:
        """Store the records that are not there yet as one pack; returns their keys, in order."""
        new = [record for record in records if record.key not in self._places]
        if not new:
            return []
        name = self._name(record.key for record in new)
        header, places = _header(name, [_entry(record) for record in new])
        self._store.put_if_absent(name, [header, *(record.payload for record in new)])
        with self._lock:
            self._packs.add(name)
            self._places.update(places)
        return [record.key for record in new]

    def drop(self, keys: Iterable[str]) -> None:
        """Forget records; a pack is deleted when none of its records is left."""
        with self._lock:
            dropped = [self._places.pop(key).pack for key in keys if key in self._places]
            if not dropped:
                return
            for pack in set(dropped) - {place.pack for place in self._places.values()}:
                self._packs.discard(pack)
                self._store.delete(pack)

    def remove(self, keys: Iterable[str]) -> int:
        """Delete records for good, packs that hold others too being written anew without them;
        returns the bytes of the payloads."""
        with self._lock:
            gone = {key: self._places[key] for key in keys if key in self._places}
            packs = {place.pack for place in gone.values()}
            kept: dict[str, dict[str, _Place]] = {pack: {} for pack in packs}
            for key, place in self._places.items():
                if place.pack in packs and key not in gone:
                    kept[place.pack][key] = place
        for pack, places in kept.items():
            self._move(places)
            self._store.delete(pack)
        self._forget(packs)
        return sum(place.length for place in gone.values())

    def _move(self, places: dict[str, _Place]) -> None:
        """Write records into a pack of their own, one payload in memory at a time."""
        if not places:
            return
        name = self._name(places)
        header, moved = _header(name, [_entry_of(key, place) for key, place in places.items()])
        old = places.values()
        payloads = (self._store.get(p.pack, p.offset, p.length) for p in old)
        self._store.put_if_absent(name, itertools.chain([header], payloads))
        with self._lock:
            self._packs.add(name)
            self._places.update(moved)

    def _name(self, keys: Iterable[str]) -> str:
        name = digest_of(sorted(keys))
        return f"{self._folder}/{name[:2]}/{name}.pack"

    def _forget(self, packs: Set[str]) -> None:
        with self._lock:
            if packs:
                self._packs -= packs
                self._places = {k: p for k, p in self._places.items() if p.pack not in packs}


def _entry(record: Record) -> dict[str, Any]:
    return {
        "key": record.key,
        "offset": 0,
        "length": memoryview(record.payload).nbytes,
        "sha256": hashlib.sha256(record.payload).hexdigest(),
        "meta": record.meta,
    }


def _entry_of(key: str, place: _Place) -> dict[str, Any]:
    checked = {"length": place.length, "sha256": place.checksum}
    return {"key": key, "offset": 0, **checked, "meta": place.meta}


def _header(name: str, entries: list[dict[str, Any]]) -> tuple[bytes, dict[str, _Place]]:
    """The head of a pack of these records, whose payloads follow in this order, and their
    places."""
    offset = 0
    for entry in entries:
        entry["offset"] = offset
        offset += entry["length"]
    text = json.dumps({"records": entries}, separators=(",", ":")).encode()
    lead = LEAD.pack(MAGIC, len(text), hashlib.sha256(text).digest())
    return lead + text, dict(_places(name, entries, LEAD.size + len(text)))


def _places(
    name: str, entries: list[dict[str, Any]], payloads_at: int
) -> Iterator[tuple[str, _Place]]:
    for entry in entries:
        yield (
            entry["key"],
            _Place(
                pack=name,
                meta=entry["meta"],
                offset=payloads_at + entry["offset"],
                length=entry["length"],
                checksum=entry["sha256"],
            ),
        )


def read_header(store: Store, name: str) -> Iterator[tuple[str, _Place]]:
    """What a pack holds. Raises DamagedRecord after setting it aside, FileNotFoundError when it is
    gone."""
    start = store.get(name, 0, FIRST_READ)
    if len(start) < LEAD.size:
        raise set_aside(store, name)
    magic, length, checksum = LEAD.unpack_from(start)
    if magic != MAGIC:
        raise set_aside(store, name)
    text = start[LEAD.size : LEAD.size + length]
    found = store.stat(name)
    if len(text) < length and found is not None and LEAD.size + length <= found.size:
        text += store.get(name, LEAD.size + len(text), length - len(text))
    if hashlib.sha256(text).digest() != checksum:
        raise set_aside(store, name)
    return _places(name, json.loads(text)["records"], LEAD.size + length)


def set_aside(store: Store, name: str) -> DamagedRecord:
    """Move a bad pack out of the way, so that it is made again; returns the error that says so."""
    with contextlib.suppress(FileNotFoundError):
        store.put_if_absent(f"{QUARANTINE}/{name}", [store.get(name)])
    store.delete(name)
    return DamagedRecord(
        f"{store.url}/{name} was damaged and has been set aside in {store.url}/{QUARANTINE}",
        hint="Run the same command again: it makes only that part anew",
    )


def verify(store: Store, prefix: str = "") -> Iterator[tuple[str, bool]]:
    """Check every record of every pack: (name, whether it was good); a bad pack is set aside."""
    for name in store.list(prefix):
        if name.startswith(f"{QUARANTINE}/") or not name.endswith(".pack"):
            continue
        try:
            for _, place in read_header(store, name):
                payload = store.get(name, place.offset, place.length)
                if hashlib.sha256(payload).hexdigest() != place.checksum:
                    raise set_aside(store, name)
        except DamagedRecord:
            yield name, False
        except FileNotFoundError:
            continue  # dropped by a running job meanwhile
        else:
            yield name, True
