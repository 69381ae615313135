"""The protocol that every store implements, and the reader of object headers.

A header states its own length.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from artifacts.records.stores.bucket_client import BucketLeases

FIRST_READ = 1 << 14
"""Bytes read of an object at first: most heads are shorter, so that one read is enough."""
CATALOGS = "catalogs"
"""Folder of a store where heads of many objects may lie together."""

Extent = Callable[[bytes], int]
"""Tells from the first bytes of an object how many belong to its head."""


def header_of(store: "Store", name: str, extent: Extent) -> bytes:
    """Return the head of an object, or less where it ends before. Raises FileNotFoundError,
    EnvironmentFault."""
    start = store.get(name, 0, FIRST_READ)
    lacking = extent(start) - len(start)
    if lacking > 0 and len(start) == FIRST_READ:
        start += store.get(name, len(start), lacking)
    return start[: extent(start)]


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectStat:
    """The metadata of an object that a store has without reading the object."""

    size: int
    """Bytes."""
    modified: float
    """Time when it was written or last used: seconds since the epoch."""


class Store(Protocol):
    """Named immutable objects with six operations: get, put-if-absent, list, stat, delete and
    touch. Three batch operations (lists, heads, stats) do the same for many objects at once.

    A name is a path with `/` separators. Several processes, and several threads of each, use a
    store at the same time.
    """

    @property
    def url(self) -> str:
        """Return the address at which `open_store` finds the same objects, in any process."""

    @property
    def local(self) -> Path:
        """Return the folder of what its users keep beside the objects, in files. These are claims,
        leases, logs, and the digests of media and texts. A folder store is that folder itself,
        because whoever shares it shares those too; any other store has `state_folder`."""

    @property
    def machine_folder(self) -> Path:
        """Return the folder of the objects that never leave this machine, and of leases on them."""

    @property
    def job_leases(self) -> "BucketLeases | None":
        """Return where running jobs of all machines are noted; None: in `machine_folder`."""

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return the bytes of an object from `offset`, at most `length` of them. Raises
        FileNotFoundError, or EnvironmentFault for what cannot be read."""

    def headers(self, names: Sequence[str], extent: Extent) -> Iterator[tuple[str, bytes]]:
        """Yield the head of each object that is there, in this order; `extent` tells how long it
        is."""

    def put_if_absent(self, name: str, parts: Iterable[bytes | memoryview]) -> bool:
        """Write an object unless it is there already; says whether it was written. It appears whole
        or not at all. Raises EnvironmentFault."""

    def list(self, prefix: str = "", levels: int = 0) -> Iterator[str]:
        """Yield names below the folder `prefix`, always in the same order. With `levels`, they have
        at most so many parts more than it, and a folder at the last stands for all that lies in it,
        which need not be looked at."""

    def lists(self, folders: Sequence[str]) -> Mapping[str, Sequence[str]]:
        """Return the names below each of these folders, all as they are now."""

    def stat(self, name: str) -> ObjectStat | None:
        """Return size and age of an object, or None when there is none."""

    def stats(self) -> Iterator[tuple[str, ObjectStat]]:
        """Yield every object there is, with size and age."""

    def delete(self, name: str) -> None:
        """Remove an object; no error when there is none."""

    def touch(self, name: str) -> None:
        """Note that an object was used just now. Where that cannot be done, the oldest is the first
        to go for space instead of the longest unused."""

    def renew(self, name: str) -> None:
        """Forget what was kept nearby of an object, so that what is read next is what lies in its
        place."""

    def check_writable(self) -> None:
        """Raise EnvironmentFault when nothing can be written here, before hours are spent to find
        out."""

    def free_bytes(self) -> int:
        """Return bytes that can still be written."""
