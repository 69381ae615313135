"""A union of record sets of one kind; knows nothing of what the records mean.

It is for what was made in several ways, and is wanted whichever way it was made.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from artifacts.packs import Record, RecordSet
from artifacts.store import Store


class RecordUnion:
    """Record sets that are read as one. The first of them is where new things go that do not say
    otherwise."""

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

    def size(self, key: str) -> int:
        """Return bytes of the record's payload. Raises KeyError."""
        return self._of(key).size(key)

    def read(self, key: str) -> Record:
        """Read the whole record, checked. Raises KeyError, DamagedRecord."""
        return self._of(key).read(key)

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
