"""The store's five verbs over a folder: get, put-if-absent, list (names, or folders), stat, delete,
and a hint that something was used; knows nothing of what the bytes mean."""

import contextlib
import errno
import os
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from artifacts.errors import EnvironmentFault, UsageError
from artifacts.paths import folder_named, lies_in
from artifacts.placing import place, sync_folder
from artifacts.regular import open_regular

TEMPORARY = "tmp"
"""Folder of half-written objects, inside the store so that a rename never crosses file systems."""
STALE_SECONDS = 3600.0
"""No writer takes so long for one object: what is older was left by one that died."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectStat:
    """What the store knows of an object without reading it."""

    size: int
    """Bytes."""
    modified: float
    """When it was written or last used: seconds since the epoch."""


class Store(Protocol):
    """Named immutable objects. A folder, a shared folder and object storage can each do these five
    things; where `touch` can do nothing, the oldest goes first instead of the longest unused."""

    @property
    def url(self) -> str: ...

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes: ...

    def put_if_absent(self, name: str, parts: Iterable[bytes | memoryview]) -> bool: ...

    def list(self, prefix: str = "") -> Iterator[str]: ...

    def folders(self, prefix: str) -> Iterator[str]: ...

    def stat(self, name: str) -> ObjectStat | None: ...

    def delete(self, name: str) -> None: ...

    def touch(self, name: str) -> None: ...


def open_store(url: str) -> "FolderStore":
    """The store at a folder path or `file://` address. Raises UsageError for an address it cannot
    serve."""
    if url.startswith("file://"):
        url = url.removeprefix("file://")
    if "://" in url:
        raise UsageError(
            f"no store can be opened at {url}",
            hint="Give a folder, local or on a shared file system",
        )
    return FolderStore(folder_named(url, "store"))


class FolderStore:
    """Objects as files under one folder; an object appears whole or not at all, and survives a
    power cut."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def url(self) -> str:
        return str(self.root)

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """The bytes of an object from `offset`, at most `length` of them. Raises FileNotFoundError,
        or EnvironmentFault for what cannot be read."""
        path = self.root / name
        try:
            with open_regular(path) as file:
                there = max(0, os.fstat(file.fileno()).st_size - offset)
                want = there if length is None else min(length, there)
                pieces = []
                while want > 0 and (piece := os.pread(file.fileno(), want, offset)):
                    pieces.append(piece)
                    offset += len(piece)
                    want -= len(piece)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise EnvironmentFault(
                f"{path} cannot be read ({error.strerror})",
                hint="Check the disk, and who may read it; the same command then goes on",
            ) from error
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def put_if_absent(self, name: str, parts: Iterable[bytes | memoryview]) -> bool:
        """Write an object unless it is there already; says whether it was written. Raises
        EnvironmentFault."""
        final = self.root / name
        half = self.root / TEMPORARY / uuid.uuid4().hex
        try:
            if final.exists():
                return False
            half.parent.mkdir(parents=True, exist_ok=True)
            with open(half, "xb") as file:
                for part in parts:
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
            self._make_folder(final.parent)
            placed = place(half, final)
            sync_folder(final.parent)
            return placed
        except OSError as error:
            raise fault_of(error, self.root) from error
        finally:
            half.unlink(missing_ok=True)

    def list(self, prefix: str = "") -> Iterator[str]:
        """Names below the folder `prefix`, in sorted order within each folder. What is no file is
        none of them; a link is followed to another disk, and not within the store."""
        try:
            entries = sorted(os.scandir(self.root / prefix), key=lambda entry: entry.name)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise fault_of(error, self.root) from error
        for entry in entries:
            name = f"{prefix}/{entry.name}" if prefix else entry.name
            try:
                is_file, is_folder = entry.is_file(), entry.is_dir()
            except OSError:  # a link that leads to itself
                continue
            if is_file:
                yield name
            elif name != TEMPORARY and is_folder and self._is_part(entry):
                yield from self.list(name)

    def folders(self, prefix: str) -> Iterator[str]:
        """Names of the folders right below the folder `prefix`, without it."""
        with contextlib.suppress(OSError):
            yield from (entry.name for entry in os.scandir(self.root / prefix) if entry.is_dir())

    def stat(self, name: str) -> ObjectStat | None:
        """Size and age of an object, or None when there is none."""
        try:
            found = os.stat(self.root / name)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return ObjectStat(size=found.st_size, modified=found.st_mtime)

    def delete(self, name: str) -> None:
        """Remove an object; no error when there is none."""
        (self.root / name).unlink(missing_ok=True)

    def touch(self, name: str) -> None:
        """Note that an object was used just now. A store that is full or may only be read keeps
        working."""
        with contextlib.suppress(OSError):
            os.utime(self.root / name)

    def check_writable(self) -> None:
        """Raise EnvironmentFault when nothing can be written here, before hours are spent to find
        out; sweeps out what writers that were killed left half-written."""
        folder = self.root / TEMPORARY
        probe = folder / uuid.uuid4().hex
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b"penstock")
            # By the clock of the file system, which may be another machine's.
            now = probe.stat().st_mtime
            for half in os.scandir(folder):
                if half.stat().st_mtime < now - STALE_SECONDS:
                    os.unlink(half)
        except FileNotFoundError:
            pass  # another run swept first
        except OSError as error:
            raise fault_of(error, self.root) from error
        finally:
            with contextlib.suppress(OSError):
                probe.unlink(missing_ok=True)

    def now(self) -> float:
        """The time by the clock that dates objects, which may be another machine's: seconds since
        the epoch."""
        probe = self.root / TEMPORARY / uuid.uuid4().hex
        try:
            probe.parent.mkdir(parents=True, exist_ok=True)
            probe.touch()
            return probe.stat().st_mtime
        except OSError:  # nothing can be written, and nothing will be deleted
            return time.time()
        finally:
            with contextlib.suppress(OSError):
                probe.unlink(missing_ok=True)

    def free_bytes(self) -> int:
        """Bytes that can still be written on the store's file system."""
        folder = self.root
        while not folder.exists():
            folder = folder.parent
        found = os.statvfs(folder)
        return found.f_bavail * found.f_frsize

    def _is_part(self, entry: os.DirEntry[str]) -> bool:
        """Whether a folder is one of the store; round in circles, a link would lead for ever."""
        root, folder = str(self.root), os.path.dirname(entry.path)
        inside = lies_in(entry.path, root) or lies_in(root, entry.path)
        return not entry.is_symlink() or (lies_in(folder, root) and not inside)

    def _make_folder(self, folder: Path) -> None:
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            sync_folder(folder.parent)


def fault_of(error: OSError, where: Path) -> EnvironmentFault:
    """The same trouble in words that say what to do about it."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return EnvironmentFault(
            f"the disk of {where} is full",
            hint="Free some space or give another --store or --out; the same command then goes on",
        )
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return EnvironmentFault(
            f"{where} cannot be made: a file is in its place, or in that of a folder above it",
            hint="Give a folder with --store and --out",
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT):
        return EnvironmentFault(
            f"{where} cannot be written ({error.strerror})",
            hint="Give a folder you may write to with --store and --out",
        )
    return EnvironmentFault(
        f"{where}: {error.strerror or error}", hint="Check the disk; the same command then goes on"
    )
