"""A size-limited local cache of remote media.

Each copy has its own folder, named by the digest of address and version, so that a path always
means the same content. A file next to the copy records its source, so that a process with only the
path can fetch it again. A reader holds a lock on the copy. The longest unused unlocked copies are
deleted to make room.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from functools import lru_cache
from io import BufferedReader
from pathlib import Path
from typing import IO

from artifacts.disk.faults import disk_faults
from artifacts.disk.files import HALF, whole_file
from artifacts.disk.json_records import read_record
from artifacts.disk.locks import lock, try_lock
from artifacts.disk.paths import nearby_folder
from artifacts.disk.stamps import CHANGED, CHANGED_HINT, CHANGED_MESSAGE, FileChanged
from artifacts.errors import MediaError, Unanswered
from artifacts.records.stores.copies import CopyRoom, nearby_limit
from artifacts.records.stores.local import boot_suffix
from artifacts.remote.addresses import RemoteFile, is_address, is_web
from artifacts.remote.ahead import OnProgress

MEDIA = "media"
"""Folder of the copies, in that of what lies elsewhere."""
KEY = re.compile(r"[0-9a-f]{64}")
NOTE = f"{HALF}far.json"
"""File beside a copy: what it is a copy of."""
OWNER_ONLY = 0o600
"""Who may read a note: an address may hold what lets its reader in."""
UNREACHABLE = "unreachable"
"""Kind of failure of a file whose server gives no answer now: no fault of what it holds."""


def media_folder() -> Path:
    return nearby_folder() / MEDIA


def copy_path(remote: RemoteFile) -> Path:
    """Return the path of a copy, which need not be there."""
    return media_folder() / remote.key[:2] / remote.key / remote.name


def copy_of(remote: RemoteFile) -> Path:
    """Return the path of a copy, and note of what: `open_local` fetches it. Raises
    EnvironmentFault."""
    path = copy_path(remote)
    if _noted(path) != remote:
        with whole_file(path.parent / NOTE) as file:
            os.fchmod(file.fileno(), OWNER_ONLY)
            file.write(json.dumps(asdict(remote)).encode())
    return path


def is_copy(path: Path) -> bool:
    """Tell whether a path is that of a copy, and no file of the user's own."""
    key = path.parent.name
    place = media_folder() / key[:2] / key
    return path.parent == place and KEY.fullmatch(key) is not None and (place / NOTE).exists()


def open_local(place: str | Path) -> contextlib.AbstractContextManager[Path]:
    """Give the path of a file until the block ends: the path itself, or that of a copy, which is
    fetched if it is not there. `place` is a path or an address. Raises EnvironmentFault, and
    MediaError for what is not to be had now."""
    is_far = is_address(place) if isinstance(place, str) else is_copy(place)
    return _fetched(place) if is_far else contextlib.nullcontext(Path(place))


def local_path(place: str | Path) -> Path:
    """Return the path of a file that was there just now, for whoever opens it at once. Raises what
    `open_local` raises."""
    with open_local(place) as path:
        return path


def copy_bytes(path: Path) -> int | None:
    """Return the size of what a path is a copy of; None for a file of this machine."""
    remote = _noted(path) if is_copy(path) else None
    return remote.size if remote is not None else None


def is_here(path: Path) -> bool:
    """Tell whether a file could be opened without fetching it."""
    return path.exists() or not is_copy(path)


def digest_at(path: Path, on_progress: OnProgress = lambda _: None) -> str:
    """Return the SHA-256 of what a copy holds, which is fetched if it is not there. `on_progress`
    gets the number of new bytes, and may raise. Raises FileNotFoundError, FileChanged and
    EnvironmentFault."""
    with _held(path, on_progress) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _fetched(place: str | Path) -> Iterator[Path]:
    """Hold a copy of what is at an address, or of what a path is a copy of."""
    address = str(place)
    with contextlib.ExitStack() as stack:
        try:
            path = _copy_at(address) if is_address(address) else Path(place)
            remote = _noted(path)
            # Nothing tells whether a file without a version is still the one that was digested.
            if remote and not (remote.lasts or is_address(address) or path.exists()):
                raise FileChanged(remote.place)
            address = remote.place if remote else address
            stack.enter_context(_held(path))
        except (FileNotFoundError, FileChanged) as error:
            raise MediaError(
                f"{address}: {CHANGED_MESSAGE}", kind=CHANGED, hint=CHANGED_HINT
            ) from error
        except Unanswered as error:
            if not is_web(address):
                raise
            raise MediaError(error.message, kind=UNREACHABLE, hint=error.hint) from error
        yield path


@lru_cache
def _copy_at(address: str) -> Path:
    """Return the path of a copy of what was at an address when this process first asked."""
    from artifacts.remote.finding import remote_file_at

    return copy_of(remote_file_at(address))


@contextlib.contextmanager
def _held(path: Path, on_progress: OnProgress = lambda _: None) -> Iterator[BufferedReader]:
    """Open a copy, fetched if it is not there, and keep others from deleting it."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            _fetch(path, on_progress)
            continue
        with os.fdopen(descriptor, "rb") as file:
            lock(file.fileno(), fcntl.LOCK_SH)
            if not _is_at(file, path):  # deleted before it was held
                continue
            with contextlib.suppress(PermissionError):
                os.utime(path)
            yield file
            return


def _fetch(path: Path, on_progress: OnProgress) -> None:
    """Fetch a copy; who else wants it waits."""
    # Whoever reads files of this machine loads nothing for it.
    from artifacts.remote.finding import check_size, fetch

    remote = _noted(path)
    if remote is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    # After a power cut, the end of a file may hold zeros that were never written.
    half = path.with_name(f"{boot_suffix()[1:9]}.part")
    with disk_faults(path.parent):
        half.touch()
    with open(half, "a+b") as part:
        lock(part.fileno())
        # Somebody else fetched it meanwhile, or took this for what nobody wants any more.
        if path.exists() or not _is_at(part, half):
            return
        check_size(remote, path.parent)
        _room(media_folder(), nearby_limit()).take(remote.size)
        fetch(remote, part, on_progress)
        os.replace(half, path)


def _is_at(file: IO[bytes], path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    return False


@lru_cache
def _room(folder: Path, limit: int | None) -> CopyRoom:
    return CopyRoom(folder, limit, _all, _remove)


def _all() -> Iterator[tuple[float, int, Path]]:
    """Yield the copies, and what was fetched of others, with their last use and size."""
    for note in media_folder().glob(f"*/*/{NOTE}"):
        with contextlib.suppress(OSError):
            for path in note.parent.iterdir():
                if is_copy(path) and not path.name.startswith(HALF):
                    status = path.stat()
                    yield status.st_mtime, status.st_size, path


def _remove(path: Path) -> None:
    """Delete a copy, unless somebody reads or fetches it; of what will not be asked for again, its
    notes too. Raises OSError."""
    with open(path, "rb") as file:
        if not try_lock(file.fileno()) or not _is_at(file, path):
            raise BlockingIOError
        path.unlink()
    if (remote := _noted(path)) is not None and not remote.lasts:
        shutil.rmtree(path.parent, ignore_errors=True)


def _noted(path: Path) -> RemoteFile | None:
    """Return what a path is a copy of; None where nothing is noted."""
    try:
        return read_record(RemoteFile, json.loads((path.parent / NOTE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
