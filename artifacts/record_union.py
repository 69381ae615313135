"""Reads several record sets of one kind as one, for records that were made in several variants."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from artifacts.pack_object import Place
from artifacts.packs import Record, RecordSet
from artifacts.store import Store


class RecordUnion:
    """Record sets that are read as one. New records go to the first by default."""

    def __init__(self, record_sets: Sequence[RecordSet]) -> None:
        self.record_sets = record_sets

    def refresh(self) -> None:
        """Look up what other processes have published, dropped or quarantined."""
        refresh_together(self)

    def look_up(self, keys: Iterable[str]) -> None:
        """Look up the pack of exactly these keys in the first record set, without listing it."""
        self.record_sets[0].look_up(keys)

    def keys(self) -> set[str]:
        return set[str]().union(*(record_set.keys() for record_set in self.record_sets))

    def __len__(self) -> int:
        return sum(map(len, self.record_sets))

    def __contains__(self, key: object) -> bool:
        return any(key in record_set for record_set in self.record_sets)

    def meta(self, key: str) -> dict[str, Any]:
        """Return a record's metadata. Raises KeyError."""
        return self._of(key).meta(key)

    def place(self, key: str) -> Place:
        """Return the location of a record. Raises KeyError."""
        return self._of(key).place(key)

    def read(self, key: str) -> Record:
        """Read and check a record. Raises KeyError, DamagedRecord."""
        return self._of(key).read(key)

    def read_several(self, keys: Sequence[str]) -> list[Record]:
        """Read and check these records. Adjacent ones are read with one request. All are in memory
        together. Raises KeyError, DamagedRecord."""
        found: dict[str, Record] = {}
        for record_set in self.record_sets:
            left = (key for key in keys if key not in found and key in record_set)
            mine = {key: record_set.place(key) for key in left}
            for run in side_by_side(mine):
                found |= {record.key: record for record in _read_run(record_set.store, run)}
            record_set.touch(mine)
        return [found.get(key) or self.read(key) for key in keys]

    def publish(self, records: Sequence[Record]) -> list[str]:
        """Store new records, and return their keys."""
        return self.record_sets[0].publish(records)

    def touch(self, keys: Iterable[str]) -> None:
        """Update the access time of records' packs."""
        listed = list(keys)
        for record_set in self.record_sets:
            record_set.touch(listed)

    def forget(self, keys: Iterable[str]) -> None:
        """Forget records. They stay in the store."""
        gone = list(keys)
        for record_set in self.record_sets:
            record_set.forget(gone)

    def drop(self, keys: Iterable[str]) -> None:
        """Forget records, and delete packs that have none left."""
        gone = list(keys)
        for record_set in self.record_sets:
            record_set.drop(gone)

    def remove(self, keys: Iterable[str]) -> int:
        """Delete records for good, and return the bytes of their payloads."""
        gone = list(keys)
        return sum(record_set.remove(gone) for record_set in self.record_sets)

    def _of(self, key: str) -> RecordSet:
        found = next((record_set for record_set in self.record_sets if key in record_set), None)
        if found is None:
            raise KeyError(key)
        return found


def side_by_side(places: Mapping[str, Place]) -> Iterator[list[tuple[str, Place]]]:
    """Yield the places in runs that are adjacent in one pack."""
    run: list[tuple[str, Place]] = []
    for key, place in sorted(places.items(), key=lambda each: (each[1].pack, each[1].offset)):
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
