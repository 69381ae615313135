"""A store in a bucket, with a folder of this machine before it; knows nothing of what the bytes
mean.

What is written goes to the bucket and stays nearby as well; what is read whole once is read from
nearby. Frames lie nearby alone: they are large, and nobody wants them for long.
"""

import contextlib
import os
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from heapq import merge
from itertools import groupby, islice
from pathlib import Path

from artifacts.errors import EnvironmentFault, UsageError
from artifacts.keys import digest_of
from artifacts.stores.bucket import PAGE, Bucket, Found
from artifacts.stores.catalogs import JOINED, WORTH, Catalogs, Head
from artifacts.stores.copies import Copies
from artifacts.stores.folder import FolderStore
from artifacts.stores.heads import FIRST_READ, Extent, head_of
from artifacts.stores.local import TEMPORARY, state_folder
from artifacts.stores.port import ObjectStat

FOLDER, LIMIT = "PENSTOCK_NEARBY", "PENSTOCK_NEARBY_GB"
"""Variables: where copies of what lies in buckets are kept, and how much they may take; unset, the
user's cache, and a part of its disk."""
STAYS = ("frames",)
"""Kinds that never leave this machine."""
QUARANTINE = "quarantine/"
WHOLE_BYTES = 64 << 20
"""An object up to this size is fetched whole when its payload is wanted; of a larger one that range
alone."""
HEAD = " head"
"""Follows the version in the name of a copy that is the beginning of an object, and no more."""
AT_ONCE = 32
"""Requests under way at a time when many heads are read."""


def bucket_store(url: str) -> "BucketStore":
    """Open the store at the address of a bucket. Raises UsageError."""
    bucket = Bucket(url)
    asked = os.environ.get(FOLDER)
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(asked) if asked else Path(cache).expanduser() / "penstock-nearby"
    try:
        limit = os.environ.get(LIMIT)
        most = int(float(limit) * 1e9) if limit else None
    except (ValueError, OverflowError) as error:
        raise UsageError(
            f"{LIMIT} is {os.environ[LIMIT]}", hint="Give a number of gigabytes"
        ) from error
    return BucketStore(bucket, folder / digest_of(bucket.url), most)


class BucketStore:
    """Objects of a bucket; an object appears whole or not at all, and is durable when it does."""

    def __init__(self, bucket: Bucket, nearby: Path, limit: int | None = None) -> None:
        self.url = bucket.url
        self.local = state_folder(bucket.url)
        self._bucket = bucket
        self._here = FolderStore(nearby / "kept")
        self._copies = Copies(nearby / "copies", limit)
        self._catalogs = Catalogs(bucket, self._copies)
        self._known: dict[str, Found] = {}
        """Name → the object as it was when it was last listed, read or written."""
        self._loose: dict[str, dict[str, Head]] = {}
        """Folder → heads that are in no catalog, as far as is known."""
        self._lock = threading.Lock()

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return the bytes of an object from `offset`, at most `length` of them. Raises
        FileNotFoundError, or EnvironmentFault for what cannot be read."""
        if _stays(name):
            return self._here.get(name, offset, length)
        known = self._known.get(name)
        if known is not None:
            copy = self._copies.read(name, known.version, offset, length)
            if copy is None and _in_head(offset, length):
                copy = self._copies.read(name, known.version + HEAD, offset, length)
            if copy is not None:
                return copy
        if _in_head(offset, length):
            start = self._fetched(name, 0, FIRST_READ)
        elif length is None or (known is not None and known.size <= WHOLE_BYTES):
            start = self._fetched(name, 0, None)
        else:
            return self._fetched(name, offset, length)
        return start[offset : None if length is None else offset + length]

    def _fetched(self, name: str, offset: int, length: int | None) -> bytes:
        """Return bytes that no copy holds, and keep one if they begin the object."""
        body, found = self._bucket.get(name, offset, length)
        self._know(found := _plain(found))
        if offset == 0:
            whole = len(body) == found.size
            self._copies.add(name, found.version + ("" if whole else HEAD), body)
        return body

    def _know(self, found: Found) -> None:
        self._known[found.name] = found

    def heads(self, names: Sequence[str], extent: Extent) -> Iterator[tuple[str, bytes]]:
        """Yield the head of each object that is there, in this order. Few requests are made for
        many that were seen before, here or elsewhere, and those at once."""
        if not names or _stays(names[0]):
            yield from self._here.heads(names, extent)
            return
        folder = "/".join(names[0].split("/")[:3])
        with ThreadPoolExecutor(AT_ONCE) as pool:
            near = pool.map(lambda name: self._near_head(name, extent), names)
            read = dict(zip(names, near, strict=True))
            lacking = [name for name, head in read.items() if head is None]
            joined = self._catalogs.heads(folder, pool) if len(lacking) >= WORTH else {}
            for name in lacking:
                known, head = self._known.get(name), joined.get(name)
                if known is not None and head is not None and head.version == known.version:
                    read[name] = head.text
            lacking = [name for name in lacking if read[name] is None]
            far = pool.map(lambda name: self._far_head(name, extent), lacking)
            read.update(zip(lacking, far, strict=True))
            self._join(folder, read, pool)
        yield from ((name, head) for name, head in read.items() if head is not None)

    def _near_head(self, name: str, extent: Extent) -> bytes | None:
        known = self._known.get(name)
        if known is None:
            return None
        for version in (known.version, known.version + HEAD):
            start = self._copies.read(name, version, 0, FIRST_READ)
            if start is not None:
                return head_of(self, name, extent)
        return None

    def _far_head(self, name: str, extent: Extent) -> bytes | None:
        try:
            return head_of(self, name, extent)
        except FileNotFoundError:
            return None

    def _join(self, folder: str, read: dict[str, bytes | None], pool: ThreadPoolExecutor) -> None:
        """Put heads in a catalog when many are in none; whoever opens the folder next reads it."""
        with self._lock:
            loose = self._loose.setdefault(folder, {})
            for name, head in read.items():
                known = self._known.get(name)
                if head and known and self._catalogs.lacks(folder, name, known.version):
                    loose[name] = Head(version=known.version, text=head)
            if len(loose) < JOINED:
                return
            self._loose[folder] = {}
        # Nothing is lost without a catalog, such as where a bucket may only be read.
        with contextlib.suppress(EnvironmentFault):
            self._catalogs.join(folder, loose, pool)

    def put_if_absent(self, name: str, parts: Iterable[bytes | memoryview]) -> bool:
        """Write an object unless it is there already; says whether it was written. Raises
        EnvironmentFault."""
        if _stays(name):
            return self._here.put_if_absent(name, parts)
        body = b"".join(parts)
        version = self._bucket.create(name, body)
        if version:
            found = Found(name=name, size=len(body), modified=time.time(), version=version)
            self._know(found := _plain(found))
            self._copies.add(name, found.version, body)
        return version is not None

    def list(self, prefix: str = "", levels: int = 0) -> Iterator[str]:
        """Yield names below the folder `prefix`, sorted; with `levels`, those of folders, too."""
        if _stays(prefix):
            return self._here.list(prefix, levels)
        far = self._levels(prefix, levels) if levels else self._below(prefix)
        if prefix and prefix != QUARANTINE.rstrip("/"):
            return far
        return unique(merge(far, self._here.list(prefix, levels)))

    def _below(self, prefix: str) -> Iterator[str]:
        for found in map(_plain, self._bucket.below(prefix)):
            self._know(found)
            yield found.name

    def _levels(self, prefix: str, levels: int) -> Iterator[str]:
        """Yield names of so many levels: from one page of all that lies there, if that is enough,
        and else folder by folder."""
        first = list(islice(self._bucket.below(prefix), PAGE))
        if len(first) < PAGE:
            last = levels + (prefix.count("/") + 1 if prefix else 0)
            yield from unique("/".join(found.name.split("/")[:last]) for found in first)
            return
        for name in self._bucket.children(prefix):
            yield from self._levels(name, levels - 1) if levels > 1 else [name]

    def stat(self, name: str) -> ObjectStat | None:
        """Return size and age of an object, or None when there is none."""
        if _stays(name):
            return self._here.stat(name)
        found = self._bucket.head(name)
        return ObjectStat(size=found.size, modified=found.modified) if found else None

    def stats(self) -> Iterator[tuple[str, ObjectStat]]:
        """Yield every object there is, with size and age."""
        for found in self._bucket.below(""):
            yield found.name, ObjectStat(size=found.size, modified=found.modified)
        yield from self._here.stats()

    def delete(self, name: str) -> None:
        """Remove an object; no error when there is none."""
        if _stays(name):
            self._here.delete(name)
            return
        self.renew(name)
        self._bucket.delete([name])

    def touch(self, name: str) -> None:
        """Note the use of what lies nearby. A bucket keeps no such note: there the oldest is the
        first to go for space."""
        if _stays(name):
            self._here.touch(name)

    def renew(self, name: str) -> None:
        """Forget the copies of an object, so that what is read next is what lies in the bucket."""
        if (known := self._known.pop(name, None)) is not None:
            for version in (known.version, known.version + HEAD):
                self._copies.drop(name, version)

    def check_writable(self) -> None:
        """Raise EnvironmentFault when nothing can be written to the bucket, or nearby."""
        self._here.check_writable()
        probe = f"{TEMPORARY}/{uuid.uuid4().hex}"
        self._bucket.create(probe, b"penstock")
        self._bucket.delete([probe])

    def free_bytes(self) -> int:
        """Return bytes that can still be written nearby: a bucket does not tell."""
        return self._here.free_bytes()


def _stays(name: str) -> bool:
    """Return whether an object, or a folder, is of a kind that never leaves this machine."""
    return name.removeprefix(QUARANTINE).split("/")[0] in STAYS


def _in_head(offset: int, length: int | None) -> bool:
    return length is not None and offset + length <= FIRST_READ


def _plain(found: Found) -> Found:
    """Return the same with a version that is written as all services write it everywhere."""
    return replace(found, version=found.version.strip('"'))


def unique(names: Iterable[str]) -> Iterator[str]:
    """Yield sorted names, each once."""
    return (name for name, _ in groupby(names))
