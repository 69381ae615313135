"""A union of record sets of one kind; knows nothing of what the records mean.

It is for what was made in several ways, and is wanted whichever way it was made.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from artifacts.packs import Record, RecordSet


class RecordUnion:
    """Record sets that are read as one. The first of them is where new things go that do not say
    otherwise."""

    def __init__(self, record_sets: Sequence[RecordSet]) -> None:
        self._record_sets = record_sets

    def refresh(self) -> None:
        """See what others have published, dropped or set aside since."""
        for record_set in self._record_sets:
            record_set.refresh()

    def keys(self) -> set[str]:
        return set[str]().union(*(record_set.keys() for record_set in self._record_sets))

    def __contains__(self, key: object) -> bool:
        return any(key in record_set for record_set in self._record_sets)

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
        return self._record_sets[0].publish(records)

    def use(self, keys: Iterable[str]) -> None:
        """Note that records are wanted still."""
        wanted = list(keys)
        for record_set in self._record_sets:
            record_set.use(wanted)

    def drop(self, keys: Iterable[str]) -> None:
        """Forget records."""
        gone = list(keys)
        for record_set in self._record_sets:
            record_set.drop(gone)

    def remove(self, keys: Iterable[str]) -> int:
        """Delete records for good; returns the bytes of the payloads."""
        gone = list(keys)
        return sum(record_set.remove(gone) for record_set in self._record_sets)

    def _of(self, key: str) -> RecordSet:
        found = next((record_set for record_set in self._record_sets if key in record_set), None)
        if found is None:
            raise KeyError(key)
        return found
