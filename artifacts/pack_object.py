"""Reads one pack as an object of a store, and quarantines a damaged or misplaced one.

A pack is immutable. It consists of magic bytes, header length, header checksum, a JSON header, and
the payloads. The header names every record with its offset, checksum and metadata. Its keys and
the folder give the name of the pack, so a pack under another name or in another folder, such as of
a wrong restore, counts as damaged.
"""

import contextlib
import hashlib
import json
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

from artifacts.errors import EnvironmentFault
from artifacts.keys import digest_of
from artifacts.store import Store
from artifacts.stores.heads import head_of

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


def pack_name(folder: str, keys: Iterable[str]) -> str:
    """Return the name of the pack that has exactly these keys in this folder of a store."""
    name = digest_of([folder, *sorted(keys)])
    return f"{folder}/{name[:2]}/{name}.pack"


def entry_of(key: str, length: int, checksum: str, meta: dict[str, Any]) -> dict[str, Any]:
    """Return the header entry of a record, without its offset."""
    return {"key": key, "offset": 0, "length": length, "sha256": checksum, "meta": meta}


def pack_head(name: str, entries: list[dict[str, Any]]) -> tuple[bytes, dict[str, Place]]:
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
    yield from places_in(store, name, head_of(store, name, head_extent))


def places_in(store: Store, name: str, head: bytes) -> Iterator[tuple[str, Place]]:
    """Yield the records listed in a pack's head. A damaged pack is quarantined. Raises
    DamagedRecord."""
    found = _parsed(name, head)
    if found is None:
        raise damaged(store, name)
    yield from found


def head_extent(start: bytes) -> int:
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
        found = _parsed(name, head_of(store, name, head_extent))
        end = max((place.offset + place.length for _, place in found or ()), default=0)
        return (
            found is not None
            and not store.get(name, end, 1)
            and all(place.fits(store.get(name, place.offset, place.length)) for _, place in found)
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


def _parsed(name: str, head: bytes) -> list[tuple[str, Place]] | None:
    """Return the records of a pack's head; None if it is invalid or belongs to another pack."""
    if len(head) < LEAD.size:
        return None
    magic, length, checksum = LEAD.unpack_from(head)
    text = head[LEAD.size :]
    if magic != MAGIC or hashlib.sha256(text).digest() != checksum:
        return None
    try:
        found = list(_places(name, json.loads(text)["records"], LEAD.size + length))
    except (ValueError, TypeError, KeyError, RecursionError):  # intact, but not written by Penstock
        return None
    return found if name == pack_name(name.rsplit("/", 2)[0], (key for key, _ in found)) else None


def _places(
    name: str, entries: list[dict[str, Any]], payloads_at: int
) -> Iterator[tuple[str, Place]]:
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
