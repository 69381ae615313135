"""Shelves of one kind seen as one: what was made in several ways, and is wanted whichever way it
was made; knows nothing of what the records mean."""

from collections.abc import Iterable, Sequence
from typing import Any

from artifacts.packs import Record, Shelf


class Shelves:
    """The first of them is where new things go that do not say otherwise."""

    def __init__(self, shelves: Sequence[Shelf]) -> None:
        self._shelves = shelves

    def refresh(self) -> None:
        """See what others have published, dropped or set aside since."""
        for shelf in self._shelves:
            shelf.refresh()

    def keys(self) -> set[str]:
        return set[str]().union(*(shelf.keys() for shelf in self._shelves))

    def __contains__(self, key: object) -> bool:
        return any(key in shelf for shelf in self._shelves)

    def meta(self, key: str) -> dict[str, Any]:
        """The record's description. Raises KeyError."""
        return self._of(key).meta(key)

    def size(self, key: str) -> int:
        """Bytes of the record's payload. Raises KeyError."""
        return self._of(key).size(key)

    def read(self, key: str) -> Record:
        """The whole record, checked. Raises KeyError, DamagedRecord."""
        return self._of(key).read(key)

    def publish(self, records: Sequence[Record]) -> list[str]:
        """Store what is not there yet; returns the keys of that."""
        return self._shelves[0].publish(records)

    def use(self, keys: Iterable[str]) -> None:
        """Note that records are wanted still."""
        wanted = list(keys)
        for shelf in self._shelves:
            shelf.use(wanted)

    def drop(self, keys: Iterable[str]) -> None:
        """Forget records."""
        gone = list(keys)
        for shelf in self._shelves:
            shelf.drop(gone)

    def remove(self, keys: Iterable[str]) -> int:
        """Delete records for good; returns the bytes of the payloads."""
        gone = list(keys)
        return sum(shelf.remove(gone) for shelf in self._shelves)

    def _of(self, key: str) -> Shelf:
        found = next((shelf for shelf in self._shelves if key in shelf), None)
        if found is None:
            raise KeyError(key)
        return found
