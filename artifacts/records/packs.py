"""Stores the records of one kind and namespace in immutable pack files.

A pack is one object of a store. It consists of magic bytes, header length, header checksum, a JSON
header, and the payloads of several records. A record is a key, JSON metadata and an optional
payload. The header names every record with its offset, checksum and metadata.

How it works:

1. A pack's name is the digest of its folder and its sorted keys. Two processes that make the same
   records therefore write the same name. A pack under another name or in another folder, for
   example after a wrong restore, counts as damaged and is quarantined.
2. `publish` drops the records that are known already, and writes the others as one pack with
   put-if-absent. The first writer wins; the second adopts the pack that is there.
3. There is no separate index. A record set lists its folder, reads the headers of new packs, and
   keeps a map from key to place. `refresh` repeats this and forgets packs that are gone.
4. `read` fetches the payload by offset and length and checks it against the SHA-256 of the header.
   On a mismatch it reads the header again, since another process may have replaced the pack.
5. A pack that still does not match is moved to `quarantine/`, and DamagedRecord is raised, so that
   the next run makes its records again.
6. `drop` forgets records and deletes a pack once none of its records is left. `remove` frees the
   bytes at once: it writes the records to be kept into a new pack, then deletes the old one.
7. Each use of a pack updates its access time once, so that garbage collection removes unused packs
   first.
8. Records of one kind that were made in several variants lie in several record sets. A union reads
   these as one.
"""

import contextlib
import hashlib
import itertools
import json
import os
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, TypedDict

from artifacts.digests import digest_of
from artifacts.errors import EnvironmentFault
from artifacts.records.eight_bits import form_of
from artifacts.records.store import NAME, Store
from artifacts.records.stores.local import TEMPORARY, left_behind
from artifacts.records.stores.protocol import ObjectStat, header_of

MAGIC = b"PENSTOCK"
LEAD = struct.Struct("<8sQ32s")
"""Magic, length of the header in bytes, SHA-256 of the header."""
LARGEST = 1 << 62
"""Larger offsets and lengths mark a header as invalid."""
LARGEST_HEADER = 1 << 32
"""Largest header in bytes; a million records take a tenth of it."""
PIECE_BYTES = 16 << 20
"""Bytes of a bad pack that are copied at a time."""
KEPT_BYTES = 1 << 30
"""Largest bad pack in bytes that is kept; a larger one was not written by Penstock."""
QUARANTINE = "quarantine"
RERUN_HINT = "Run the same command again: it computes only the missing part"


class DamagedRecord(EnvironmentFault):
    """A stored record is missing or differs from what was written, and must be computed again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """The location of a record, and its checksum."""

    pack: str
    """Name of the object."""
    meta: dict[str, Any]
    """Description of the record."""
    offset: int
    """Bytes from the start of the object to the payload."""
    length: int
    """Bytes of the payload."""
    checksum: str
    """SHA-256 of the payload, in hex."""

    def fits(self, payload: bytes) -> bool:
        """Return whether a payload matches its length and checksum."""
        return len(payload) == self.length and hashlib.sha256(payload).hexdigest() == self.checksum


class PackEntry(TypedDict):
    """What a pack's header says of one record."""

    key: str
    offset: int
    length: int
    sha256: str
    meta: dict[str, Any]


def pack_name(folder: str, keys: Iterable[str]) -> str:
    """Return the name of the pack that has exactly these keys in this folder of a store."""
    name = digest_of([folder, *sorted(keys)])
    return f"{folder}/{name[:2]}/{name}.pack"


def entry_of(key: str, length: int, checksum: str, meta: dict[str, Any]) -> PackEntry:
    """Return the header entry of a record, without its offset."""
    return {"key": key, "offset": 0, "length": length, "sha256": checksum, "meta": meta}


def pack_header(name: str, entries: list[PackEntry]) -> tuple[bytes, dict[str, Place]]:
    """Return the head of a pack of these records, and their places. The payloads follow in this
    order."""
    offset = 0
    for entry in entries:
        entry["offset"] = offset
        offset += entry["length"]
    text = json.dumps({"records": entries}, separators=(",", ":")).encode()
    lead = LEAD.pack(MAGIC, len(text), hashlib.sha256(text).digest())
    return lead + text, dict(_places(name, entries, LEAD.size + len(text)))


def read_header(store: Store, name: str) -> Iterator[tuple[str, Place]]:
    """Yield the records of a pack. A damaged pack is quarantined. Raises DamagedRecord,
    FileNotFoundError."""
    yield from places_in(store, name, header_of(store, name, header_extent))


def places_in(store: Store, name: str, header: bytes) -> Iterator[tuple[str, Place]]:
    """Yield the records listed in a pack's head. A damaged pack is quarantined. Raises
    DamagedRecord."""
    places = _parsed(name, header)
    if places is None:
        raise damaged(store, name)
    yield from places


def header_extent(start: bytes) -> int:
    """Return the size in bytes of a pack's head, from its first bytes."""
    if len(start) < LEAD.size:
        return len(start)
    magic, length, _ = LEAD.unpack_from(start)
    return LEAD.size + length if magic == MAGIC and length < LARGEST_HEADER else LEAD.size


def damaged(store: Store, name: str) -> DamagedRecord:
    """Quarantine a damaged pack, so that it is computed again, and return the error. The pack stays
    if another process has replaced it in the meantime."""
    if is_whole(store, name):
        return DamagedRecord(f"{store.url}/{name} was replaced while it was read", hint=RERUN_HINT)
    quarantine(store, name)
    return DamagedRecord(
        f"{store.url}/{name} was damaged and is now quarantined in {store.url}/{QUARANTINE}",
        hint=RERUN_HINT,
    )


def gone(store: Store, name: str) -> DamagedRecord:
    """Return the error for a pack that no longer exists."""
    return DamagedRecord(f"{store.url}/{name} is gone", hint=RERUN_HINT)


def quarantine(store: Store, name: str) -> None:
    """Move a pack to the quarantine folder."""
    pieces = _pieces(store, name)
    with contextlib.suppress(FileNotFoundError):
        first = next(pieces)  # a missing pack fails here, before anything is written
        store.put_if_absent(f"{QUARANTINE}/{name}", chain([first], pieces))
    store.delete(name)


def _pieces(store: Store, name: str) -> Iterator[bytes]:
    for start in range(0, KEPT_BYTES, PIECE_BYTES):
        piece = store.get(name, start, PIECE_BYTES)
        yield piece
        if len(piece) < PIECE_BYTES:
            return


def is_whole(store: Store, name: str) -> bool:
    """Return whether a pack exists, all its records match their checksums, and nothing follows
    them."""
    store.renew(name)
    try:
        places = _parsed(name, header_of(store, name, header_extent))
        end = max((place.offset + place.length for _, place in places or ()), default=0)
        return (
            places is not None
            and not store.get(name, end, 1)
            and all(place.fits(store.get(name, place.offset, place.length)) for _, place in places)
        )
    except FileNotFoundError:
        return False


def verify(store: Store, prefix: str = "") -> Iterator[tuple[str, bool]]:
    """Check every record of every pack. Yield (name, whether it was good). Quarantine bad packs."""
    for name in store.list(prefix):
        if name.startswith(f"{QUARANTINE}/") or not name.endswith(".pack"):
            continue
        good = is_whole(store, name)
        if not good and store.stat(name) is None:
            continue  # deleted by a running job in the meantime
        if not good:
            quarantine(store, name)
        yield name, good


def _parsed(name: str, header: bytes) -> list[tuple[str, Place]] | None:
    """Return the records of a pack's head; None if it is invalid or belongs to another pack."""
    if len(header) < LEAD.size:
        return None
    magic, length, checksum = LEAD.unpack_from(header)
    text = header[LEAD.size :]
    if magic != MAGIC or hashlib.sha256(text).digest() != checksum:
        return None
    try:
        places = list(_places(name, json.loads(text)["records"], LEAD.size + length))
    except (ValueError, TypeError, KeyError, RecursionError):  # intact, but not written by Penstock
        return None
    return places if name == pack_name(name.rsplit("/", 2)[0], (key for key, _ in places)) else None


def _places(name: str, entries: list[PackEntry], payloads_at: int) -> Iterator[tuple[str, Place]]:
    """Yield the places of a header's records. Raises ValueError, TypeError or KeyError for an
    invalid header."""
    for entry in entries:
        offset, length = int(entry["offset"]), int(entry["length"])
        if not (0 <= offset < LARGEST and 0 <= length < LARGEST):
            raise ValueError(f"invalid offset {offset} or length {length}")
        yield (
            str(entry["key"]),
            Place(
                pack=name,
                meta=dict(entry["meta"]),
                offset=payloads_at + offset,
                length=length,
                checksum=str(entry["sha256"]),
            ),
        )


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
            for name, header in self.store.headers(new, header_extent):
                with contextlib.suppress(DamagedRecord):
                    places = dict(places_in(self.store, name, header))
                    self._packs.add(name)
                    for key, place in places.items():
                        self._places.setdefault(key, place)

    def look_up_pack(self, keys: Iterable[str]) -> None:
        """Look up the pack that was published with exactly these keys, without listing the folder:
        no record of another pack is found."""
        with contextlib.suppress(DamagedRecord, FileNotFoundError):
            self._record(name := pack_name(self.folder, keys), dict(read_header(self.store, name)))

    def keys(self) -> set[str]:
        return set(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def meta(self, key: str) -> Any:
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
        packs = self.packs_of(keys)
        for pack in packs - self._used:
            self.store.touch(pack)
        self._used |= packs

    def packs_of(self, keys: Iterable[str]) -> set[str]:
        """Return the names of the packs that hold any of these records."""
        return {self._places[key].pack for key in keys if key in self._places}

    def publish(self, records: Sequence[Record]) -> list[str]:
        """Store new records as one pack, and return their keys in order. Return none if another
        process wrote the pack first; its pack is then used."""
        new = [record for record in records if record.key not in self._places]
        if not new:
            return []
        name = pack_name(self.folder, (record.key for record in new))
        entries = [entry_of(r.key, *_measured(r.payload), r.meta) for r in new]
        header, places = pack_header(name, entries)
        if not self._put(name, places, lambda: [header, *(record.payload for record in new)]):
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
        header, moved = pack_header(name, entries)
        self._put(name, moved, lambda: itertools.chain([header], self._checked(places.values())))

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
    return memoryview(payload).nbytes, hashlib.sha256(payload).hexdigest()


def read_made(record_set: "RecordSet | RecordUnion", key: str, missing: str, hint: str) -> Record:
    """Read a record that an earlier stage made. Raises DamagedRecord, also if it is not there:
    `missing` says so, with a place for its key."""
    try:
        return record_set.read(key)
    except KeyError as error:
        raise DamagedRecord(missing.format(f"{key[:12]}…"), hint=hint) from error


class RecordUnion:
    """Record sets that are read as one, by the methods of `RecordSet`. New records go to the
    first."""

    def __init__(self, record_sets: Sequence[RecordSet]) -> None:
        self.record_sets = record_sets

    def refresh(self) -> None:
        refresh_together(self)

    def look_up_pack(self, keys: Iterable[str]) -> None:
        self.record_sets[0].look_up_pack(keys)

    def keys(self) -> set[str]:
        return set[str]().union(*(record_set.keys() for record_set in self.record_sets))

    def __len__(self) -> int:
        return sum(map(len, self.record_sets))

    def __contains__(self, key: object) -> bool:
        return any(key in record_set for record_set in self.record_sets)

    def meta(self, key: str) -> Any:
        return self._of(key).meta(key)

    def place(self, key: str) -> Place:
        return self._of(key).place(key)

    def read(self, key: str) -> Record:
        return self._of(key).read(key)

    def read_several(self, keys: Sequence[str]) -> list[Record]:
        """Read and check these records. Adjacent ones are read with one request. All are in memory
        together. Raises KeyError, DamagedRecord."""
        records: dict[str, Record] = {}
        for record_set in self.record_sets:
            left = (key for key in keys if key not in records and key in record_set)
            mine = {key: record_set.place(key) for key in left}
            for run in side_by_side(mine):
                records |= {record.key: record for record in _read_run(record_set.store, run)}
            record_set.touch(mine)
        return [records.get(key) or self.read(key) for key in keys]

    def publish(self, records: Sequence[Record]) -> list[str]:
        return self.record_sets[0].publish(records)

    def touch(self, keys: Iterable[str]) -> None:
        listed = list(keys)
        for record_set in self.record_sets:
            record_set.touch(listed)

    def forget(self, keys: Iterable[str]) -> None:
        gone = list(keys)
        for record_set in self.record_sets:
            record_set.forget(gone)

    def drop(self, keys: Iterable[str]) -> None:
        gone = list(keys)
        for record_set in self.record_sets:
            record_set.drop(gone)

    def remove(self, keys: Iterable[str]) -> int:
        gone = list(keys)
        return sum(record_set.remove(gone) for record_set in self.record_sets)

    def _of(self, key: str) -> RecordSet:
        holder = next((record_set for record_set in self.record_sets if key in record_set), None)
        if holder is None:
            raise KeyError(key)
        return holder


def side_by_side(places: Mapping[str, Place]) -> Iterator[list[tuple[str, Place]]]:
    """Yield the places in runs that are adjacent in one pack."""
    run: list[tuple[str, Place]] = []
    for key, place in sorted(places.items(), key=lambda pair: (pair[1].pack, pair[1].offset)):
        last = run[-1][1] if run else None
        if last and (last.pack, last.offset + last.length) != (place.pack, place.offset):
            yield run
            run = []
        run.append((key, place))
    if run:
        yield run


def _read_run(store: Store, run: Sequence[tuple[str, Place]]) -> Iterator[Record]:
    """Yield the intact records of a run. The others are read one by one, which reports the
    cause."""
    pack, start = run[0][1].pack, run[0][1].offset
    end = run[-1][1].offset + run[-1][1].length
    try:
        piece = store.get(pack, start, end - start)
    except FileNotFoundError:
        return
    for key, place in run:
        payload = piece[place.offset - start : place.offset - start + place.length]
        if place.fits(payload):
            yield Record(key=key, meta=place.meta, payload=payload)


def refresh_together(*several: RecordSet | RecordUnion) -> None:
    """Look up what other processes have published, dropped or quarantined, in all of these."""
    every = [
        s for one in several for s in ([one] if isinstance(one, RecordSet) else one.record_sets)
    ]
    for store in {id(record_set.store): record_set.store for record_set in every}.values():
        ours = [record_set for record_set in every if record_set.store is store]
        names = store.lists(list(dict.fromkeys(record_set.folder for record_set in ours)))
        for record_set in ours:
            record_set.update(names[record_set.folder])


def record_sets_of(store: Store, *places: tuple[str, str]) -> list[RecordSet]:
    """Open the record sets of these kinds and namespaces with few requests."""
    opened = [RecordSet(store, kind, namespace, look=False) for kind, namespace in places]
    refresh_together(*opened)
    return opened


@dataclass(frozen=True, kw_only=True, slots=True)
class Pack:
    """One pack file of a store."""

    name: str
    stat: ObjectStat

    @property
    def kind(self) -> str:
        return self.name.split("/")[0]

    @property
    def namespace(self) -> str:
        return self.name.split("/")[2]

    def is_used_again(self, store: Store) -> bool:
        """Return whether the pack was used since it was listed."""
        current = store.stat(self.name)
        return current is not None and current.modified > self.stat.modified


def packs(stored: Mapping[str, ObjectStat]) -> list[Pack]:
    """Return the packs among the objects of a store, without quarantined ones."""
    return [
        Pack(name=name, stat=stat)
        for name, stat in stored.items()
        if name.endswith(".pack") and name.count("/") >= 3 and not name.startswith(f"{QUARANTINE}/")
    ]


def sizes_in(store: Store, stored: Mapping[str, ObjectStat]) -> dict[str, int]:
    """Return the bytes of all files and objects by name: the size of a store wherever it is shown
    or limited. Half-written files and the number of the format are none of it. In a folder store,
    objects are files, too: merging by name counts each once."""
    sizes = {}
    for place, folders, names in os.walk(store.local):
        if TEMPORARY in folders and Path(place) == store.local:
            folders.remove(TEMPORARY)
        for path in (Path(place, name) for name in names):
            with contextlib.suppress(FileNotFoundError):
                sizes[path.relative_to(store.local).as_posix()] = path.lstat().st_size
    sizes |= {name: stat.size for name, stat in stored.items()}
    sizes.pop(NAME, None)
    return sizes


def half_written_in(store: Store) -> tuple[dict[str, int], int]:
    """Return the bytes of half-written files by name whose writers died, and the bytes of all
    others, which may be written now."""
    left, writing = {path.name for path in left_behind(store.local)}, 0
    dead: dict[str, int] = {}
    for half in (store.local / TEMPORARY).glob("*"):
        with contextlib.suppress(FileNotFoundError):
            size = half.lstat().st_size
            if half.name in left:
                dead[f"{TEMPORARY}/{half.name}"] = size
            else:
                writing += size
    return dead, writing


def stored_features(store: Store, form: str) -> RecordUnion:
    """Return the features of a store as a run with this form reads them: in its form before others,
    which it takes where its own are gone."""
    names = stored_namespaces(store, "features")
    in_order = sorted(names, key=lambda name: (form_of(name) != form, name))
    return RecordUnion([RecordSet(store, "features", name) for name in in_order])
