"""A store in a folder, on a local disk or on a shared file system."""

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from artifacts.disk.faults import disk_faults, read_fault
from artifacts.disk.paths import lies_in, rename_noreplace, sync_folder
from artifacts.disk.regular_files import open_regular
from artifacts.records.stores.local import TEMPORARY, half_written, sweep_left_behind
from artifacts.records.stores.protocol import Extent, ObjectStat, header_of


class FolderStore:
    """Objects as files in one folder. A write is atomic and survives a power cut. `Store` says what
    each method does."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def url(self) -> str:
        return str(self._root)

    @property
    def local(self) -> Path:
        return self._root

    machine_folder = local

    @property
    def job_leases(self) -> None:
        return None

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        path = self._root / name
        try:
            with open_regular(path) as file:
                size = os.fstat(file.fileno()).st_size
                # A damaged header may state an offset that no disk can seek to.
                start = file.seek(min(offset, size))
                return file.read(size - start if length is None else min(length, size - start))
        except FileNotFoundError:
            raise
        except NotADirectoryError as error:
            raise FileNotFoundError(error.errno, error.strerror, str(path)) from error
        except OSError as error:
            raise read_fault(error, path) from error

    def headers(self, names: Sequence[str], extent: Extent) -> Iterator[tuple[str, bytes]]:
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                yield name, header_of(self, name, extent)

    def put_if_absent(self, name: str, parts: Iterable[bytes | memoryview]) -> bool:
        final = self._root / name
        with disk_faults(self._root):
            if final.exists():
                return False
            with half_written(self._root) as (half, file):
                for part in parts:
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
                if not final.parent.is_dir():
                    final.parent.mkdir(parents=True, exist_ok=True)
                    sync_folder(final.parent.parent)
                placed = rename_noreplace(half, final)
                sync_folder(final.parent)
                return placed

    def list(self, prefix: str = "", levels: int = 0) -> Iterator[str]:
        """Yield names of files below the folder `prefix`, sorted within each folder. A folder that
        is the last of so many `levels` is named, too, even an empty one. A link to another disk is
        followed; one within the store is not."""
        try:
            entries = sorted(os.scandir(self._root / prefix), key=lambda entry: entry.name)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise read_fault(error, self._root) from error
        for entry in entries:
            name = f"{prefix}/{entry.name}" if prefix else entry.name
            try:
                is_file, is_folder = entry.is_file(), entry.is_dir()
            except OSError:  # a link that leads to itself
                continue
            is_part = is_folder and name != TEMPORARY and self._is_part(entry)
            if is_file or (is_part and levels == 1):
                yield name
            elif is_part:
                yield from self.list(name, levels - 1)

    def lists(self, folders: Sequence[str]) -> Mapping[str, Sequence[str]]:
        return {folder: [*self.list(folder)] for folder in folders}

    def stat(self, name: str) -> ObjectStat | None:
        try:
            status = os.stat(self._root / name)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return ObjectStat(size=status.st_size, modified=status.st_mtime)

    def stats(self) -> Iterator[tuple[str, ObjectStat]]:
        for name in self.list():
            if (stat := self.stat(name)) is not None:
                yield name, stat

    def delete(self, name: str) -> None:
        (self._root / name).unlink(missing_ok=True)

    def touch(self, name: str) -> None:
        """Note that an object was used just now. A store that is full or may only be read keeps
        working."""
        with contextlib.suppress(OSError):
            os.utime(self._root / name)

    def renew(self, name: str) -> None:
        """Do nothing: every read is of what lies there."""

    def check_writable(self) -> None:
        """Raise EnvironmentFault when nothing can be written here, before hours are spent to find
        out. It sweeps out what writers that were killed left half-written."""
        probe = f"{TEMPORARY}/{uuid.uuid4().hex}"
        self.put_if_absent(probe, [b"penstock"])
        self.delete(probe)
        sweep_left_behind(self._root)

    def free_bytes(self) -> int:
        existing = next(filter(Path.exists, (self._root, *self._root.parents)))
        return shutil.disk_usage(existing).free

    def _is_part(self, entry: os.DirEntry[str]) -> bool:
        """Return whether a folder is one of the store; round in circles, a link would lead for
        ever."""
        if not entry.is_symlink():
            return True
        root, folder = str(self._root), os.path.dirname(entry.path)
        inside = lies_in(entry.path, root) or lies_in(root, entry.path)
        return lies_in(folder, root) and not inside
