"""Records of one kind and scope, several to a store object, checksummed; knows nothing of what the
records mean.

A pack is one immutable object: magic, header length, header checksum, a JSON header that names
every record with its
place, checksum and description, then the payloads. What is done is read off the headers; there is
no other book.
"""

import contextlib
import hashlib
import json
import struct
import threading
from collections.abc import Iterable, Iterator, Sequence
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
        self._lock = threading.RLock()
        """Workers of one stage publish and drop at the same time; held while the books change."""
        self.refresh()

    def refresh(self) -> None:
        """See what others have published, dropped or set aside since."""
        names = list(self._store.list(self._folder))
        with self._lock:
            for gone in self._packs.difference(names):
                self._forget(gone)
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
            self._forget(place.pack)
            raise DamagedRecord(
                f"{self._store.url}/{place.pack} is gone",
                hint="Run the same command again: it makes only that part anew",
            ) from error
        if len(payload) != place.length or hashlib.sha256(payload).hexdigest() != place.checksum:
            self._forget(place.pack)
            raise set_aside(self._store, place.pack)
        return Record(key=key, meta=place.meta, payload=payload)

    def publish(self, records: Sequence[Record]) -> list[str]:
        """Store the records that are not there yet as one pack; returns their keys, in order."""
        new = [record for record in records if record.key not in self._places]
        if not new:
            return []
        name = digest_of(sorted(record.key for record in new))
        name = f"{self._folder}/{name[:2]}/{name}.pack"
        header, places = _header(name, new)
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

    def _forget(self, pack: str) -> None:
        with self._lock:
            self._packs.discard(pack)
            self._places = {k: p for k, p in self._places.items() if p.pack != pack}


def _header(name: str, records: Sequence[Record]) -> tuple[bytes, dict[str, _Place]]:
    entries, offset = [], 0
    for record in records:
        length = memoryview(record.payload).nbytes
        checksum = hashlib.sha256(record.payload).hexdigest()
        entries.append(
            {
                "key": record.key,
                "offset": offset,
                "length": length,
                "sha256": checksum,
                "meta": record.meta,
            }
        )
        offset += length
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
