"""Reads the heads of many objects of a bucket at once, from what is nearby and from catalogs first.
It knows nothing of what they say."""

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from artifacts.errors import EnvironmentFault
from artifacts.stores.catalogs import JOINED, WORTH, Catalogs, Head
from artifacts.stores.heads import Extent, Readable, head_of

AT_ONCE = 32
"""Requests under way at a time."""
MANY = 1000
"""Heads that are looked for in catalogs first even where all are nearby: so many files take longer
to read (10,000: 16 s against 6 s)."""
FOLDER_PARTS = 3
"""Parts of a name that are of its folder: those that are read together lie in one."""


class Near(Readable, Protocol):
    """What of a store is needed to read many heads."""

    def version(self, name: str) -> str | None: ...

    def is_near(self, name: str) -> bool: ...


class Heads:
    """The heads of one store's objects."""

    def __init__(self, store: Near, catalogs: Catalogs) -> None:
        self._store = store
        self._catalogs = catalogs
        self._loose: dict[str, dict[str, Head]] = {}
        """Folder → heads that are in no catalog, as far as is known."""
        self._lock = threading.Lock()

    def each(self, names: Sequence[str], extent: Extent) -> Iterator[tuple[str, bytes]]:
        """Yield the head of each object of one folder that is there, in this order. Raises
        EnvironmentFault."""
        folder = "/".join(names[0].split("/")[:FOLDER_PARTS])
        with ThreadPoolExecutor(min(AT_ONCE, len(names))) as pool:
            many = len(names) >= MANY
            far = names if many else [n for n in names if not self._store.is_near(n)]
            joined = self._catalogs.heads(folder, pool) if len(far) >= WORTH else {}
            read = self._joined(far, joined)

            def head(name: str) -> bytes | None:
                with contextlib.suppress(FileNotFoundError):
                    return read[name] if name in read else head_of(self._store, name, extent)
                return None

            found = dict(zip(names, pool.map(head, names), strict=True))
            there = {name: text for name, text in found.items() if text is not None}
            self._join(folder, there, pool)
        yield from there.items()

    def _joined(self, names: Sequence[str], heads: Mapping[str, Head]) -> dict[str, bytes]:
        """Return those heads that are of the versions that are there now."""
        return {
            name: heads[name].text
            for name in names
            if name in heads and heads[name].version == self._store.version(name)
        }

    def _join(self, folder: str, read: Mapping[str, bytes], pool: ThreadPoolExecutor) -> None:
        """Put heads in a catalog when many are in none; whoever opens the folder next reads it."""
        with self._lock:
            loose = self._loose.setdefault(folder, {})
            for name, text in read.items():
                version = self._store.version(name)
                if version and self._catalogs.lacks(folder, name, version):
                    loose[name] = Head(version=version, text=text)
            if len(loose) < JOINED:
                return
            self._loose[folder] = {}
        # Nothing is lost without a catalog, such as where a bucket may only be read.
        with contextlib.suppress(EnvironmentFault):
            self._catalogs.join(folder, loose, pool)
