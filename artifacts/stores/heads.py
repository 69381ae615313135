"""Reads the headers of objects. A header states its own length."""

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

FIRST_READ = 1 << 14
"""Bytes read of an object at first: most heads are shorter, so that one read is enough."""
CATALOGS = "catalogs"
"""Folder of a store where heads of many objects may lie together."""

Extent = Callable[[bytes], int]
"""Tells from the first bytes of an object how many belong to its head."""


class Readable(Protocol):
    """The part of a store that reading headers needs."""

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes: ...


def head_of(store: Readable, name: str, extent: Extent) -> bytes:
    """Return the head of an object, or less where it ends before. Raises FileNotFoundError,
    EnvironmentFault."""
    start = store.get(name, 0, FIRST_READ)
    lacking = extent(start) - len(start)
    if lacking > 0 and len(start) == FIRST_READ:
        start += store.get(name, len(start), lacking)
    return start[: extent(start)]


def each_head(store: Readable, names: Iterable[str], extent: Extent) -> Iterator[tuple[str, bytes]]:
    """Yield the head of each object that is there, one after another."""
    for name in names:
        try:
            yield name, head_of(store, name, extent)
        except FileNotFoundError:
            continue
