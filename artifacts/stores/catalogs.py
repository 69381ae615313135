"""Merges the headers of many objects of a folder into few catalog objects, so that the folder opens
with few requests.

A catalog is an immutable object named by a digest. It holds headers with the versions of their
objects; a header for another version is ignored. Catalogs are optional: a header without one is
read from its object.
"""

import contextlib
import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass

from artifacts.stores.bucket_client import Bucket, Listed
from artifacts.stores.copies import Copies
from artifacts.stores.heads import CATALOGS

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """The header of one object."""

    version: str
    """Version of the object that it is of."""
    text: bytes


class Catalogs:
    """The catalogs of one bucket."""

    def __init__(self, bucket: Bucket, copies: Copies) -> None:
        self._bucket = bucket
        self._copies = copies
        self._seen: dict[str, dict[str, set[tuple[str, str]]]] = {}
        """Folder → name of a catalog → names and versions of the objects in it."""

    def heads(self, folder: str, pool: Executor) -> dict[str, Head]:
        """Return all heads that the catalogs of a folder hold, by the name of their object. Raises
        EnvironmentFault."""
        return self._look(folder, pool)[1]

    def _look(self, folder: str, pool: Executor) -> tuple[list[Listed], dict[str, Head]]:
        listed = list(self._bucket.below(f"{CATALOGS}/{folder}"))
        heads: dict[str, Head] = {}
        seen: dict[str, set[tuple[str, str]]] = {}
        for catalog, held in zip(listed, pool.map(self._read, listed), strict=True):
            heads.update(held)
            seen[catalog.name] = {(name, head.version) for name, head in held.items()}
        self._seen[folder] = seen
        return listed, heads

    def lacks(self, folder: str, name: str, version: str) -> bool:
        """Return whether no catalog that was read or written here holds this."""
        return not any((name, version) in held for held in self._seen.get(folder, {}).values())

    def join(self, folder: str, heads: Mapping[str, Head], pool: Executor) -> None:
        """Write a catalog of heads, but for those that others joined meanwhile, if there are enough
        of them; merge catalogs when they are many. Raises EnvironmentFault."""
        listed, there = self._look(folder, pool)
        new = {n: h for n, h in heads.items() if self.lacks(folder, n, h.version)}
        if len(new) < JOINED:
            return
        small = [found.name for found in listed if found.size < SMALL_BYTES]
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

    def _read(self, catalog: Listed) -> dict[str, Head]:
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


def _packed(heads: Mapping[str, Head]) -> bytes:
    index = [[name, head.version, len(head.text)] for name, head in sorted(heads.items())]
    texts = (heads[name].text for name in sorted(heads))
    body = zlib.compress(b"".join([json.dumps(index).encode(), b"\n", *texts]), level=1)
    return hashlib.sha256(body).digest() + body


def _unpacked(text: bytes) -> Iterator[tuple[str, Head]]:
    """Yield the heads of a catalog. Raises ValueError, TypeError or zlib.error for what is none."""
    checksum, body = text[:32], text[32:]
    if hashlib.sha256(body).digest() != checksum:
        raise ValueError("not what was written")
    index, _, texts = zlib.decompressobj().decompress(body, LARGEST_BYTES).partition(b"\n")
    at = 0
    for name, version, length in json.loads(index):
        yield name, Head(version=version, text=texts[at : at + length])
        at += length
