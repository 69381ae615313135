"""A size-limited local cache of object copies.

A copy is identified by name and version, so that other content is never served for it. Losing a
copy loses nothing: a copy that cannot be written or read is fetched again.
"""

import contextlib
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from artifacts.digests import digest_of
from artifacts.errors import UsageError

LIMIT = "PENSTOCK_NEARBY_GB"
"""Environment variable: the size limit of the local cache. Default: a share of its disk."""
SHARE = 4
"""Without a limit, copies take at most one part in so many of their disk."""
SPARE_BYTES = 256 << 20
"""Bytes of the disk that are left free."""
LOOK_BYTES = 256 << 20
"""Bytes that a process adds before it measures the cache again."""
LOOKS = 8
"""It also measures again when one part in so many of the limit was added."""
KEEP = 0.75
"""Share of the limit to which a full cache is reduced."""


def nearby_limit() -> int | None:
    """Return the size limit of the local cache in bytes; None: a share of the disk. Raises
    UsageError."""
    limit = os.environ.get(LIMIT)
    try:
        return int(float(limit) * 1e9) if limit else None
    except (ValueError, OverflowError) as error:
        raise UsageError(f"{LIMIT} is {limit}", hint="Give a number of gigabytes") from error


class CopyRoom:
    """The size limit of the copies below one folder, shared by several processes."""

    def __init__(
        self,
        folder: Path,
        limit: int | None,
        list_copies: Callable[[], Iterable[tuple[float, int, Path]]],
        remove: Callable[[Path], None] = Path.unlink,
    ) -> None:
        """Take the folder, the most bytes to be kept in it, what finds the copies in it as (last
        use, bytes, path), and what deletes one or raises OSError."""
        self._folder = folder
        self._limit = limit
        self._list_copies = list_copies
        self._remove = remove
        self._look_bytes = LOOK_BYTES if limit is None else min(LOOK_BYTES, limit // LOOKS)
        self._added = self._look_bytes
        self._lock = threading.Lock()

    def take(self, size: int) -> None:
        """Make room for so many bytes by deleting the least recently used copies."""
        with self._lock:
            self._added += size
            if self._added >= self._look_bytes or self._is_full(size):
                self._added = 0
                self._shrink(size)

    def _is_full(self, coming: int) -> bool:
        with contextlib.suppress(OSError):
            return shutil.disk_usage(self._folder).free < coming + SPARE_BYTES
        return False

    def _shrink(self, coming: int) -> None:
        with contextlib.suppress(OSError):
            disk = shutil.disk_usage(self._folder)
            limit = disk.total // SHARE if self._limit is None else self._limit
            copies = sorted(self._list_copies())
            total = sum(size for _, size, _ in copies) + coming
            limit = min(limit, total - coming + disk.free - SPARE_BYTES)
            if total <= limit:
                return
            for _, size, path in copies:
                if total <= limit * KEEP:
                    return
                with contextlib.suppress(OSError):
                    self._remove(path)
                    total -= size


class Copies:
    """The copies below one folder, shared by several processes."""

    def __init__(self, folder: Path, limit: int | None = None) -> None:
        """Take the folder, which need not be there, and the most bytes to be kept in it."""
        self._folder = folder
        self._room = CopyRoom(folder, limit, self._all)

    def read(
        self, name: str, version: str, offset: int = 0, length: int | None = None
    ) -> bytes | None:
        """Return bytes of the copy from `offset`, at most `length`; None where there is no copy."""
        path = self._path(name, version)
        try:
            with open(path, "rb") as file:
                available = os.fstat(file.fileno()).st_size - offset
                want = max(0, available if length is None else min(length, available))
                file.seek(offset)
                content = file.read(want)
            with contextlib.suppress(OSError):
                os.utime(path)
            return content
        except OSError:
            return None

    def has(self, name: str, version: str) -> bool:
        """Return whether there is a copy."""
        return self._path(name, version).exists()

    def add(self, name: str, version: str, body: bytes) -> None:
        """Store a copy, if possible."""
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
        self._room.take(len(body))

    def drop(self, name: str, version: str) -> None:
        """Delete a copy."""
        with contextlib.suppress(OSError):
            self._path(name, version).unlink()

    def _path(self, name: str, version: str) -> Path:
        digest = digest_of([name, version])
        return self._folder / digest[:2] / digest

    def _all(self) -> Iterator[tuple[float, int, Path]]:
        for path in self._folder.glob("*/*"):
            with contextlib.suppress(OSError):
                status = path.stat()
                yield status.st_mtime, status.st_size, path
