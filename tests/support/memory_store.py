"""A store in the memory of one process."""

import contextlib
import errno
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

from artifacts.records.stores.local import state_folder
from artifacts.records.stores.protocol import Extent, ObjectStat, header_of


class MemoryStore:
    """Objects as bytes in a dict, which no process outlives and no other one sees."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.local = self.machine_folder = state_folder(url)
        self.job_leases = None
        self._objects: dict[str, tuple[bytes, float]] = {}
        """Name → content, and when it was written or last used."""
        self._lock = threading.Lock()

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """The bytes of an object from `offset`, at most `length` of them. Raises
        FileNotFoundError."""
        if (found := self._objects.get(name)) is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        return found[0][offset : None if length is None else offset + length]

    def headers(self, names: Sequence[str], extent: Extent) -> Iterator[tuple[str, bytes]]:
        """The head of each object that is there."""
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                yield name, header_of(self, name, extent)

    def put_if_absent(self, name: str, parts: Iterable[bytes | memoryview]) -> bool:
        """Keep an object unless it is there already; says whether it was kept."""
        if name in self._objects:
            return False
        written = (b"".join(parts), time.time())
        with self._lock:
            return self._objects.setdefault(name, written) is written

    def list(self, prefix: str = "", levels: int = 0) -> Iterator[str]:
        """Names below the folder `prefix`, sorted."""
        start = f"{prefix}/" if prefix else ""
        with self._lock:
            names = sorted(name for name in self._objects if name.startswith(start))
        if levels:
            last = start.count("/") + levels
            names = list(dict.fromkeys("/".join(name.split("/")[:last]) for name in names))
        yield from names

    def lists(self, folders: Sequence[str]) -> Mapping[str, Sequence[str]]:
        """The names below each of these folders."""
        return {folder: [*self.list(folder)] for folder in folders}

    def stat(self, name: str) -> ObjectStat | None:
        """Size and age of an object, or None when there is none."""
        found = self._objects.get(name)
        return found and ObjectStat(size=len(found[0]), modified=found[1])

    def stats(self) -> Iterator[tuple[str, ObjectStat]]:
        """Every object there is, with size and age."""
        for name in self.list():
            if (found := self.stat(name)) is not None:
                yield name, found

    def delete(self, name: str) -> None:
        """Forget an object; no error when there is none."""
        with self._lock:
            self._objects.pop(name, None)

    def touch(self, name: str) -> None:
        """Note that an object was used just now."""
        with self._lock:
            if name in self._objects:
                self._objects[name] = (self._objects[name][0], time.time())

    def renew(self, name: str) -> None:
        """Nothing is kept elsewhere."""

    def check_writable(self) -> None:
        """Memory can be written."""

    def free_bytes(self) -> int:
        """Bytes of memory that nobody uses."""
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


OPENED: dict[str, MemoryStore] = {}
"""Name → the store of that name in this process."""


def memory_named(url: str) -> MemoryStore:
    """The one store at this URL."""
    return OPENED.setdefault(url, MemoryStore(url))
