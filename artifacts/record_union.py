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
        """See what others have published, dropped or set aside since."""
        refresh_together(self)

    def keys(self) -> set[str]:
        return set[str]().union(*(record_set.keys() for record_set in self.record_sets))

    def __contains__(self, key: object) -> bool:
        return any(key in record_set for record_set in self.record_sets)

    def meta(self, key: str) -> dict[str, Any]:
        """Return the record's description. Raises KeyError."""
        return self._of(key).meta(key)

    def place(self, key: str) -> Place:
        """Return where the record lies. Raises KeyError."""
        return self._of(key).place(key)

    def read(self, key: str) -> Record:
        """Read the whole record, checked. Raises KeyError, DamagedRecord."""
        return self._of(key).read(key)

    def read_several(self, keys: Sequence[str]) -> list[Record]:
        """Read these records, checked; those that lie side by side are read at once, and all are
        in memory together. Raises KeyError, DamagedRecord."""
        found: dict[str, Record] = {}
        for record_set in self.record_sets:
            left = (key for key in keys if key not in found and key in record_set)
            mine = {key: record_set.place(key) for key in left}
            for run in side_by_side(mine):
                found |= {record.key: record for record in _read_run(record_set.store, run)}
            record_set.use(mine)
        return [found.get(key) or self.read(key) for key in keys]

    def publish(self, records: Sequence[Record]) -> list[str]:
        """Store what is not there yet; returns the keys of that."""
        return self.record_sets[0].publish(records)

    def use(self, keys: Iterable[str]) -> None:
        """Note that records are wanted still."""
        wanted = list(keys)
        for record_set in self.record_sets:
            record_set.use(wanted)

    def drop(self, keys: Iterable[str]) -> None:
        """Forget records."""
        gone = list(keys)
        for record_set in self.record_sets:
            record_set.drop(gone)

    def remove(self, keys: Iterable[str]) -> int:
        """Delete records for good; returns the bytes of the payloads."""
        gone = list(keys)
        return sum(record_set.remove(gone) for record_set in self.record_sets)

    def _of(self, key: str) -> RecordSet:
        found = next((record_set for record_set in self.record_sets if key in record_set), None)
        if found is None:
            raise KeyError(key)
        return found


def side_by_side(places: Mapping[str, Place]) -> Iterator[list[tuple[str, Place]]]:
    """Yield the places in runs that one piece of one pack holds, and nothing besides."""
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
    """Yield what is whole of a run; what is not, is read by itself, which tells why."""
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
    """See what others have published, dropped or set aside since, in all of these at once."""
    every = [
        s for one in several for s in ([one] if isinstance(one, RecordSet) else one.record_sets)
    ]
    for store in {id(record_set.store): record_set.store for record_set in every}.values():
        ours = [record_set for record_set in every if record_set.store is store]
        names = store.lists(list(dict.fromkeys(record_set.folder for record_set in ours)))
        for record_set in ours:
            record_set.see(names[record_set.folder])


def record_sets_of(store: Store, *places: tuple[str, str]) -> list[RecordSet]:
    """Open the record sets of these kinds and namespaces, all at once."""
    opened = [RecordSet(store, kind, namespace, look=False) for kind, namespace in places]
    refresh_together(*opened)
    return opened
