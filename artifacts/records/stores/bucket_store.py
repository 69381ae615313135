"""A store in a bucket with a local cache folder.

Objects are written to the bucket and to the local cache. An object that was read completely is then
served from the cache. Frames are stored locally only: they are large and short-lived.

The store combines the headers of many objects of a folder into few catalog objects, so that the
folder opens with few requests. A catalog is an immutable object named by a digest. It holds headers
with the versions of their objects; a header for another version is ignored. Catalogs are optional:
a header without one is read from its object.
"""

import contextlib
import hashlib
import json
import threading
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from heapq import merge
from itertools import groupby, islice
from pathlib import Path

from artifacts.digests import digest_of
from artifacts.disk.paths import nearby_folder
from artifacts.errors import EnvironmentFault
from artifacts.records.stores.bucket_client import PAGE, Bucket, BucketLeases, Listed
from artifacts.records.stores.copies import Copies, nearby_limit
from artifacts.records.stores.folder import FolderStore
from artifacts.records.stores.local import TEMPORARY, state_folder
from artifacts.records.stores.protocol import CATALOGS, FIRST_READ, Extent, ObjectStat, header_of

WORTH = 32
"""Heads that are to be read before it is looked for catalogs of them."""
JOINED = 64
"""Heads in no catalog, at least, that a new one is made of."""
MERGED = 16
"""Small catalogs in one folder that become one."""
SMALL_BYTES = 4 << 20
"""Catalogs from this size on are left as they are."""
LARGEST_BYTES = 1 << 30
"""Most bytes of the heads of one catalog: ours have a hundredth."""
AT_ONCE = 32
"""Requests under way at a time."""
MANY = 1000
"""Heads that are looked for in catalogs first even where all are nearby: so many files take longer
to read (10,000: 16 s against 6 s)."""
FOLDER_PARTS = 3
"""Parts of a name that are of its folder: those that are read together lie in one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PackHeader:
    """The header of one object."""

    version: str
    """Version of the object that it is of."""
    text: bytes


class Catalogs:
    """Reads the pack headers of one store, and joins many of them in a catalog, so that the next
    reader makes one request for all."""

    def __init__(self, store: "BucketStore", bucket: Bucket, copies: Copies) -> None:
        self._store = store
        self._bucket = bucket
        self._copies = copies
        self._seen: dict[str, dict[str, set[tuple[str, str]]]] = {}
        """Folder → name of a catalog → names and versions of the objects in it."""
        self._loose: dict[str, dict[str, PackHeader]] = {}
        """Folder → heads that are in no catalog, as far as is known."""
        self._lock = threading.Lock()

    def headers(self, names: Sequence[str], extent: Extent) -> Iterator[tuple[str, bytes]]:
        """Yield the head of each object of one folder that is there, in this order. Raises
        EnvironmentFault."""
        folder = "/".join(names[0].split("/")[:FOLDER_PARTS])
        with ThreadPoolExecutor(min(AT_ONCE, len(names))) as pool:
            many = len(names) >= MANY
            far = names if many else [n for n in names if not self._store.is_near(n)]
            joined = self._look(folder, pool)[1] if len(far) >= WORTH else {}
            now = {name: self._store.version(name) for name in far if name in joined}
            read = {n: joined[n].text for n, version in now.items() if joined[n].version == version}

            def head(name: str) -> bytes | None:
                with contextlib.suppress(FileNotFoundError):
                    return read[name] if name in read else header_of(self._store, name, extent)
                return None

            heads = dict(zip(names, pool.map(head, names), strict=True))
            there = {name: text for name, text in heads.items() if text is not None}
            self._join(folder, there, pool)
        yield from there.items()

    def _join(self, folder: str, read: Mapping[str, bytes], pool: ThreadPoolExecutor) -> None:
        """Put heads in a catalog when many are in none; whoever opens the folder next reads it."""
        with self._lock:
            loose = self._loose.setdefault(folder, {})
            for name, text in read.items():
                version = self._store.version(name)
                if version and self._lacks(folder, name, version):
                    loose[name] = PackHeader(version=version, text=text)
            if len(loose) < JOINED:
                return
            self._loose[folder] = {}
        # Nothing is lost without a catalog, such as where a bucket may only be read.
        with contextlib.suppress(EnvironmentFault):
            self._write(folder, loose, pool)

    def _look(self, folder: str, pool: Executor) -> tuple[list[Listed], dict[str, PackHeader]]:
        """Return the catalogs of a folder, and all heads that they hold by the name of their
        object. Raises EnvironmentFault."""
        listed = list(self._bucket.below(f"{CATALOGS}/{folder}"))
        headers: dict[str, PackHeader] = {}
        seen: dict[str, set[tuple[str, str]]] = {}
        for catalog, held in zip(listed, pool.map(self._read, listed), strict=True):
            headers.update(held)
            seen[catalog.name] = {(name, head.version) for name, head in held.items()}
        self._seen[folder] = seen
        return listed, headers

    def _lacks(self, folder: str, name: str, version: str) -> bool:
        """Return whether no catalog that was read or written here holds this."""
        return not any((name, version) in held for held in self._seen.get(folder, {}).values())

    def _write(self, folder: str, headers: Mapping[str, PackHeader], pool: Executor) -> None:
        """Write a catalog of heads, but for those that others joined meanwhile, if there are enough
        of them; merge catalogs when they are many. Raises EnvironmentFault."""
        listed, there = self._look(folder, pool)
        new = {n: h for n, h in headers.items() if self._lacks(folder, n, h.version)}
        if len(new) < JOINED:
            return
        small = [catalog.name for catalog in listed if catalog.size < SMALL_BYTES]
        merged = small if len(small) >= MERGED else []
        held = set[tuple[str, str]]().union(*(self._seen[folder][name] for name in merged))
        new = {n: h for n, h in there.items() if (n, h.version) in held} | new
        text = _packed(new)
        name = f"{CATALOGS}/{folder}/{hashlib.sha256(text).hexdigest()}"
        version = self._bucket.create(name, text)
        if version:
            self._copies.add(name, version.strip('"'), text)
        self._seen[folder][name] = {(n, h.version) for n, h in new.items()}
        if merged:
            self._bucket.delete(merged)

    def _read(self, catalog: Listed) -> dict[str, PackHeader]:
        """Return what a catalog holds: nothing, if it is gone or is none."""
        version = catalog.version.strip('"')
        text = self._copies.read(catalog.name, version)
        if text is None:
            with contextlib.suppress(FileNotFoundError):
                text, _ = self._bucket.get(catalog.name)
                self._copies.add(catalog.name, version, text)
        with contextlib.suppress(ValueError, TypeError, zlib.error):
            return dict(_unpacked(text or b""))
        self._copies.drop(catalog.name, version)
        return {}


def _packed(headers: Mapping[str, PackHeader]) -> bytes:
    index = [[name, head.version, len(head.text)] for name, head in sorted(headers.items())]
    texts = (headers[name].text for name in sorted(headers))
    body = zlib.compress(b"".join([json.dumps(index).encode(), b"\n", *texts]), level=1)
    return hashlib.sha256(body).digest() + body


def _unpacked(text: bytes) -> Iterator[tuple[str, PackHeader]]:
    """Yield the heads of a catalog. Raises ValueError, TypeError or zlib.error for what is none."""
    checksum, body = text[:32], text[32:]
    if hashlib.sha256(body).digest() != checksum:
        raise ValueError("not what was written")
    index, _, texts = zlib.decompressobj().decompress(body, LARGEST_BYTES).partition(b"\n")
    at = 0
    for name, version, length in json.loads(index):
        yield name, PackHeader(version=version, text=texts[at : at + length])
        at += length


STAYS = ("frames/",)
"""Folders of kinds that never leave this machine."""
QUARANTINE = "quarantine/"
WHOLE_BYTES = 64 << 20
"""An object up to this size is fetched whole when its payload is wanted; of a larger one that range
alone."""
HEAD = " head"
"""Follows the version in the name of a copy that is the beginning of an object, and no more."""
PROBE = f"{TEMPORARY}/probe"
"""Object that says nothing, and is listed nowhere."""


def bucket_store(url: str) -> "BucketStore":
    """Open the store at the address of a bucket. Raises UsageError."""
    bucket = Bucket(url)
    return BucketStore(bucket, nearby_folder() / digest_of(bucket.url), nearby_limit())


class BucketStore:
    """Objects in a bucket. A write is atomic, and durable when it returns. `Store` says what each
    method does."""

    def __init__(self, bucket: Bucket, nearby: Path, limit: int | None = None) -> None:
        self.url = bucket.url
        self.local = state_folder(bucket.url)
        self.job_leases = BucketLeases(bucket)
        self._bucket = bucket
        self._here = FolderStore(nearby / "kept")
        self.machine_folder = self._here.local
        self._copies = Copies(nearby / "copies", limit)
        self._catalogs = Catalogs(self, bucket, self._copies)
        self._known: dict[str, Listed] = {}
        """Name → the object as it was when it was last listed, read or written."""
        self._is_large = False
        """Whether the store was seen to hold more than is worth a list of all."""

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        if _stays(name):
            return self._here.get(name, offset, length)
        known = self._known.get(name)
        if known is not None:
            copy = self._copies.read(name, known.version, offset, length)
            if copy is None and _in_header(offset, length):
                copy = self._copies.read(name, known.version + HEAD, offset, length)
            if copy is not None:
                return copy
        if _in_header(offset, length):
            start = self._fetched(name, 0, FIRST_READ)
        elif length is None or (known is not None and known.size <= WHOLE_BYTES):
            start = self._fetched(name, 0, None)
        else:
            return self._fetched(name, offset, length)
        return start[offset : None if length is None else offset + length]

    def _fetched(self, name: str, offset: int, length: int | None) -> bytes:
        """Return bytes that no copy holds, and keep one if they begin the object."""
        body, listed = self._bucket.get(name, offset, length)
        self._known[name] = listed = _plain(listed)
        if offset == 0:
            is_whole = len(body) == listed.size
            self._copies.add(name, listed.version + ("" if is_whole else HEAD), body)
        return body

    def headers(self, names: Sequence[str], extent: Extent) -> Iterator[tuple[str, bytes]]:
        """Yield the head of each object that is there, in this order. Few requests are made for
        many that were seen before, here or elsewhere, and those at once."""
        if not names or _stays(names[0]):
            return self._here.headers(names, extent)
        return self._catalogs.headers(names, extent)

    def version(self, name: str) -> str | None:
        """Return the version that an object had when it was last seen."""
        known = self._known.get(name)
        return known.version if known is not None else None

    def is_near(self, name: str) -> bool:
        """Return whether the beginning of an object is read without a request."""
        version = self.version(name) or ""
        return any(self._copies.has(name, v) for v in (version, version + HEAD))

    def put_if_absent(self, name: str, parts: Iterable[bytes | memoryview]) -> bool:
        if _stays(name):
            return self._here.put_if_absent(name, parts)
        body = b"".join(parts)
        version = self._bucket.create(name, body)
        if version:
            listed = Listed(name=name, size=len(body), modified=time.time(), version=version)
            self._known[name] = listed = _plain(listed)
            self._copies.add(name, listed.version, body)
        return version is not None

    def list(self, prefix: str = "", levels: int = 0) -> Iterator[str]:
        if _stays(prefix):
            return self._here.list(prefix, levels)
        far = self._levels(prefix, levels) if levels else self._below(prefix)
        if prefix and prefix != QUARANTINE.rstrip("/"):
            return far
        far = (name for name in far if name.split("/")[0] != TEMPORARY)
        return unique(merge(far, self._here.list(prefix, levels)))

    def _below(self, prefix: str) -> Iterator[str]:
        for listed in map(_plain, self._bucket.below(prefix)):
            self._known[listed.name] = listed
            yield listed.name

    def lists(self, folders: Sequence[str]) -> Mapping[str, Sequence[str]]:
        """Return the names below each of these folders: of a small store by a list of all there is,
        which takes fewer requests."""
        here = {folder: [*self._here.list(folder)] for folder in folders if _stays(folder)}
        far = [folder for folder in folders if folder not in here]
        if len(far) > 1 and not self._is_large:
            most = PAGE * max(1, len(far) // 2)
            every = list(islice(self._below(""), most))
            self._is_large = len(every) == most
            if not self._is_large:
                return here | {f: [n for n in every if n.startswith(f"{f}/")] for f in far}
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return here | dict(zip(far, pool.map(lambda f: [*self._below(f)], far), strict=True))

    def _levels(self, prefix: str, levels: int) -> Iterator[str]:
        """Yield names of so many levels: from one page of all that lies there, if that is enough,
        and else folder by folder."""
        first = list(islice(self._bucket.below(prefix), PAGE))
        if len(first) < PAGE:
            last = levels + (prefix.count("/") + 1 if prefix else 0)
            yield from unique("/".join(listed.name.split("/")[:last]) for listed in first)
            return
        folders, objects = self._bucket.inside(prefix)
        for name in sorted([*folders, *(listed.name for listed in objects)]):
            yield from self._levels(name, levels - 1) if levels > 1 else [name]

    def stat(self, name: str) -> ObjectStat | None:
        if _stays(name):
            return self._here.stat(name)
        listed = self._bucket.head(name)
        return ObjectStat(size=listed.size, modified=listed.modified) if listed else None

    def stats(self) -> Iterator[tuple[str, ObjectStat]]:
        for listed in self._bucket.below(""):
            if listed.name == PROBE:
                continue
            yield listed.name, ObjectStat(size=listed.size, modified=listed.modified)
        yield from self._here.stats()

    def delete(self, name: str) -> None:
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
        if (known := self._known.pop(name, None)) is not None:
            for version in (known.version, known.version + HEAD):
                self._copies.drop(name, version)

    def check_writable(self) -> None:
        """Raise EnvironmentFault when nothing can be written to the bucket, or nearby."""
        self._here.check_writable()
        self._bucket.write(PROBE, b"penstock")

    def free_bytes(self) -> int:
        """Return bytes that can still be written nearby: a bucket does not tell."""
        return self._here.free_bytes()


def _stays(name: str) -> bool:
    """Return whether an object, or a folder, is of a kind that never leaves this machine."""
    return f"{name.removeprefix(QUARANTINE)}/".startswith(STAYS)


def _in_header(offset: int, length: int | None) -> bool:
    return length is not None and offset + length <= FIRST_READ


def _plain(listed: Listed) -> Listed:
    """Return the same with a version that is written as all services write it everywhere."""
    return replace(listed, version=listed.version.strip('"'))


def unique(names: Iterable[str]) -> Iterator[str]:
    """Yield sorted names, each once."""
    return (name for name, _ in groupby(names))
