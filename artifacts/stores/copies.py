"""Keeps copies of objects on this machine's disk, within a limit; knows neither what they mean nor
where they are from.

A copy is known by a name and a version, so that one of other bytes is never taken for it. Nothing
is lost with a copy: what cannot be written or read here is fetched again.
"""

import contextlib
import os
import shutil
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

from artifacts.keys import digest_of

SHARE = 4
"""Copies take at most one part in so many of their disk, where no limit is set."""
LOOK_BYTES = 256 << 20
"""Bytes that a process adds before it looks again what all of them took."""
KEEP = 0.75
"""Part of the limit to which copies are brought when they take more."""


class Copies:
    """The copies below one folder, which several processes share."""

    def __init__(self, folder: Path, limit: int | None = None) -> None:
        """Take the folder, which need not be there, and the most bytes to be kept in it."""
        self._folder = folder
        self._limit = limit
        self._added = LOOK_BYTES
        self._lock = threading.Lock()

    def read(
        self, name: str, version: str, offset: int = 0, length: int | None = None
    ) -> bytes | None:
        """Return bytes of the copy from `offset`, at most `length`; None where there is no copy."""
        path = self._path(name, version)
        try:
            with open(path, "rb") as file:
                there = os.fstat(file.fileno()).st_size - offset
                want = max(0, there if length is None else min(length, there))
                file.seek(offset)
                found = file.read(want)
            with contextlib.suppress(OSError):
                os.utime(path)
            return found
        except OSError:
            return None

    def has(self, name: str, version: str) -> bool:
        """Return whether there is a copy."""
        return self._path(name, version).exists()

    def add(self, name: str, version: str, body: bytes) -> None:
        """Keep a copy, if it can be."""
        path = self._path(name, version)
        half = path.with_name(f"{uuid.uuid4().hex}.half")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            half.write_bytes(body)
            half.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                half.unlink()
            return
        with self._lock:
            self._added += len(body)
            if self._added >= LOOK_BYTES:
                self._added = 0
                self._shrink()

    def drop(self, name: str, version: str) -> None:
        """Forget a copy."""
        with contextlib.suppress(OSError):
            self._path(name, version).unlink()

    def _path(self, name: str, version: str) -> Path:
        digest = digest_of([name, version])
        return self._folder / digest[:2] / digest

    def _shrink(self) -> None:
        """Delete the longest unused until there is room again."""
        with contextlib.suppress(OSError):
            limit = self._limit
            if limit is None:
                limit = shutil.disk_usage(self._folder).total // SHARE
            found = sorted(self._all())
            left = sum(size for _, size, _ in found)
            if left <= limit:
                return
            for _, size, path in found:
                if left <= limit * KEEP:
                    return
                with contextlib.suppress(OSError):
                    path.unlink()
                left -= size

    def _all(self) -> Iterator[tuple[float, int, Path]]:
        for path in self._folder.glob("*/*"):
            with contextlib.suppress(OSError):
                found = path.stat()
                yield found.st_mtime, found.st_size, path
