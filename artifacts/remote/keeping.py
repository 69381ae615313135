"""Keeps copies of media that lie far away on this machine's disk, within a limit, and fetches those
that are wanted again; knows nothing of what is in them.

A copy has a folder of its own, called by the digest of address and version, so its path means one
content for ever. Beside it lies what it is a copy of: whoever is given the path alone can have it
again. Who reads a copy holds a lock on it; the longest unused of the others make room.
"""

import contextlib
import errno
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import IO

from artifacts.errors import MediaError
from artifacts.files import HALF, whole_file
from artifacts.remote.addresses import FarFile, is_address
from artifacts.stamps import CHANGED, CHANGED_HINT, CHANGED_MESSAGE, FileChanged
from artifacts.store import fault_of
from artifacts.stores.copies import CopyRoom, nearby_folder, nearby_limit

MEDIA = "media"
"""Folder of the copies, in that of what lies elsewhere."""
NOTE = f"{HALF}far.json"
OWNER_ONLY = 0o600
"""Who may read a note: an address may hold what lets its reader in."""


def media_folder() -> Path:
    """Return the folder of all copies."""
    return nearby_folder() / MEDIA


def copy_of(far: FarFile) -> Path:
    """Return the path of a copy, which need not be there: `at_hand` fetches it. Raises
    EnvironmentFault."""
    path = media_folder() / far.key[:2] / far.key / far.name
    known = _noted(path)
    if known is None or known[0].address != far.address:
        _note(path, far, known[1] if known else "")
    return path


@contextlib.contextmanager
def at_hand(place: str | Path) -> Iterator[Path]:
    """Give the path of a file until the block ends: the path itself, or that of a copy, which is
    fetched if it is not there. `place` is a path or an address. Raises EnvironmentFault, and
    MediaError where something else, or nothing, lies far away now."""
    with contextlib.ExitStack() as stack:
        try:
            path = _copy_at(place) if is_address(str(place)) else Path(place)
            if path.is_relative_to(media_folder()):
                stack.enter_context(_held(path))
        except (FileNotFoundError, FileChanged) as error:
            raise MediaError(
                f"{place}: {CHANGED_MESSAGE}", kind=CHANGED, hint=CHANGED_HINT
            ) from error
        yield path


def near(place: str | Path) -> Path:
    """Return the path of a file that was there just now, for whoever opens it at once. Raises what
    `at_hand` raises."""
    with at_hand(place) as path:
        return path


def _copy_at(address: str | Path) -> Path:
    from artifacts.remote.finding import far_file_at

    return copy_of(far_file_at(str(address)))


def digest_at(path: Path, hear: Callable[[int], None] = lambda _: None) -> str:
    """Return the SHA-256 of what a copy holds, which is fetched if that is not known yet. `hear` is
    told of the bytes as they come, and may raise. Raises FileNotFoundError, FileChanged and
    EnvironmentFault."""
    if not (known := digest_noted(path)):
        with _held(path, hear):
            known = digest_noted(path)
    return known


def digest_noted(path: Path) -> str:
    """Return the SHA-256 of what a copy holds, or held; empty where that is not known yet."""
    known = _noted(path)
    return known[1] if known is not None else ""


def note_digest(path: Path, digest: str) -> None:
    """Remember the SHA-256 of what a copy will hold, by which what is fetched is judged."""
    known = _noted(path)
    if known is not None:
        _note(path, known[0], digest)


@contextlib.contextmanager
def _held(path: Path, hear: Callable[[int], None] = lambda _: None) -> Iterator[None]:
    """Fetch a copy if it is not there, and keep others from deleting it."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            _fetch(path, hear)
            continue
        with os.fdopen(descriptor, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            if not _is_at(file, path):  # deleted before it was held
                continue
            found = os.fstat(file.fileno())
            os.utime(path, ns=(time.time_ns(), found.st_mtime_ns))
            yield
            return


def _fetch(path: Path, hear: Callable[[int], None]) -> None:
    """Fetch a copy; who else wants it waits."""
    # Whoever reads files of this machine loads nothing for it.
    from artifacts.remote.fetching import fetch, part_name

    known = _noted(path)
    if known is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    far, digest = known
    half = path.with_name(part_name())
    try:
        half.touch(OWNER_ONLY)
    except OSError as error:
        raise fault_of(error, path.parent) from error
    with open(half, "a+b") as part:
        fcntl.flock(part, fcntl.LOCK_EX)
        # Somebody else fetched it meanwhile, or took this for what nobody wants any more.
        if path.exists() or not _is_at(part, half):
            return
        _room(media_folder(), nearby_limit()).take(far.size)
        found = fetch(far, part, hear)
        if digest and found != digest:
            part.truncate(0)
            raise FileChanged(far.place)
        _note(path, far, found)
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
    for path in media_folder().glob("*/*/*"):
        with contextlib.suppress(OSError):
            if not path.name.startswith(HALF):
                found = path.stat()
                yield max(found.st_atime, found.st_mtime), found.st_size, path


def _remove(path: Path) -> None:
    """Delete a copy, unless somebody reads or fetches it. Raises OSError."""
    with open(path, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()


def _noted(path: Path) -> tuple[FarFile, str] | None:
    """Return what a path is a copy of, and the SHA-256 of that, empty if it was never fetched; None
    where nothing is noted."""
    try:
        told = json.loads((path.parent / NOTE).read_text(encoding="utf-8"))
        return FarFile(**told["far"]), str(told["sha256"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _note(path: Path, far: FarFile, digest: str) -> None:
    with whole_file(path.parent / NOTE) as file:
        os.fchmod(file.fileno(), OWNER_ONLY)
        file.write(json.dumps({"far": asdict(far), "sha256": digest}).encode())
