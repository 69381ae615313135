"""Digests: of values, of items, and of files' contents, remembered; knows nothing of what the
digests are used for."""

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

from artifacts.paths import RealPaths

ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True)
"""Made once: `json.dumps` makes one for every call, which takes longer than the rest of a key."""
LOOKED_AT_TOGETHER = 256
"""Files whose digests are looked up by one thread in one go."""


def digest_of(value: Any) -> str:
    """64 hex digits that depend on nothing but the JSON value; the order of a mapping's keys does
    not matter."""
    return hashlib.sha256(ENCODER.encode(value).encode()).hexdigest()


def item_key(scope: str, media_digest: str, chunk_index: int, *more: Any) -> str:
    """The key of what one stage makes of one chunk; `more` is what else decides its bytes, such as
    the prompt."""
    return digest_of([scope, media_digest, chunk_index, *more])


def content_key(digest: str, kind: str) -> str:
    """What a medium is known by: its content, and whether it is read as a video or as an image."""
    return digest if kind == "video" else digest_of([digest, kind])


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class ContentDigests:
    """Content digests of files, remembered by (path, size, mtime_ns, inode) in one append-only file
    of JSON lines.

    The memory is a convenience: losing it costs one more reading of the files. Lines are short
    enough to be appended
    in one write, so several processes may share it.
    """

    def __init__(self, memory: Path) -> None:
        self._memory = memory
        self._known: dict[str, tuple[list[int], str]] = {}
        self._real = RealPaths()
        try:
            lines = memory.read_text(encoding="utf-8").splitlines()
        except OSError:
            lines = []
        for line in lines:
            try:
                path, stamp, digest = json.loads(line)
            except ValueError:
                continue  # torn by a crash: the file it spoke of is read once more
            self._known[path] = (stamp, digest)

    def of(self, path: Path) -> str:
        """The digest of one file's content. Raises OSError when it cannot be read."""
        known = self._remembered(path)
        if known is not None:
            return known
        name = self._real.of(path)
        stamp = _stamp(name)
        digest = _name_in_hub_cache(Path(name)) or hash_file(Path(name))
        if _stamp(name) == stamp:  # else it is being written: right now, not for later
            self._known[name] = (stamp, digest)
            self._remember(json.dumps([name, stamp, digest]) + "\n")
        return digest

    def known(self, path: Path) -> str:
        """The same without reading the file; empty where that would be needed."""
        return self._remembered(path) or _name_in_hub_cache(Path(self._real.of(path))) or ""

    def of_many(self, paths: Sequence[Path], workers: int) -> list[str | OSError]:
        """The digest of each file, or the error that reading it gave; hashing runs on `workers`
        threads."""

        def remembered(group: Sequence[Path]) -> list[str | None]:
            return [self._remembered(path) for path in group]

        def one(path: Path) -> str | OSError:
            try:
                return self.of(path)
            except OSError as error:
                return error

        groups = [
            paths[at : at + LOOKED_AT_TOGETHER] for at in range(0, len(paths), LOOKED_AT_TOGETHER)
        ]
        with ThreadPoolExecutor(max(1, workers)) as pool:
            known = list(chain.from_iterable(pool.map(remembered, groups)))
            unknown = (p for p, digest in zip(paths, known, strict=True) if digest is None)
            hashed = pool.map(one, unknown)
            return [next(hashed) if digest is None else digest for digest in known]

    def _remembered(self, path: Path) -> str | None:
        """The digest of a file that was read before and has not changed since."""
        name = self._real.of(path)
        known = self._known.get(name)
        with contextlib.suppress(OSError):
            if known is not None and known[0] == _stamp(name):
                return known[1]
        return None

    def _remember(self, line: str) -> None:
        try:
            self._memory.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self._memory, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(file, line.encode())
            finally:
                os.close(file)
        except OSError:
            return  # a store that cannot be written says so where it matters


def _stamp(path: str) -> list[int]:
    stat = os.stat(path)
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]


def _name_in_hub_cache(path: Path) -> str | None:
    """The hub's cache names large files by their SHA-256, so that 28 GB need not be read to be
    known."""
    name = path.name
    if path.parent.name == "blobs" and len(name) == 64 and set(name) <= set("0123456789abcdef"):
        return name
    return None
