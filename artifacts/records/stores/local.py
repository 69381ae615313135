"""Writes files in steps below a folder on this machine, and deletes what killed writers left.

A process locks the file that it writes, and ends the file's name with the boot id of its machine.
After the process was killed, others on that machine find the lock free and delete the file at once.
On other machines, only the age of the file decides.
"""

import contextlib
import fcntl
import os
import time
import uuid
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

from artifacts.digests import digest_of
from artifacts.disk.paths import user_state

TEMPORARY = "tmp"
"""Folder of half-written files, in the same place so that a rename never crosses file systems."""
STALE_SECONDS = 3600.0
"""No writer takes so long for one file: what is older was left by one that died. Where locks
are of no use, such as for files of other machines, this alone decides."""


def state_folder(url: str) -> Path:
    """Return this user's folder on this machine for a store that is not a folder."""
    return user_state() / "stores" / digest_of(url)


def clock_of(folder: Path) -> float:
    """Return the time by the clock that dates files there, in seconds since the epoch. It may be
    another machine's."""
    half = folder / TEMPORARY
    try:
        half.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=half) as probe:
            return os.fstat(probe.fileno()).st_mtime
    except OSError:  # nothing can be written, and nothing will be deleted
        return time.time()


@contextlib.contextmanager
def half_written(folder: Path) -> Iterator[tuple[Path, IO[bytes]]]:
    """Yield the path of a new half-written file, and that file. It is locked until the end of the
    block, and gone after it. Raises OSError."""
    half = folder / TEMPORARY / f"{uuid.uuid4().hex}{boot_suffix()}"
    half.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(half, "xb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:  # no locks here: the name promises none
                half = half.rename(half.with_suffix(""))
            yield half, file
    finally:
        with contextlib.suppress(OSError):
            half.unlink()


def left_behind(folder: Path, within: str = TEMPORARY) -> Iterator[Path]:
    """Yield half-written files whose writers died, or files of another folder that nobody has used
    for as long."""
    paths = [*(folder / within).glob("*")]
    now = clock_of(folder) if paths else 0.0
    for path in paths:
        with contextlib.suppress(OSError):  # another run swept first
            status = path.lstat()
            # One that is empty may not be locked yet.
            is_ours = bool(status.st_size and boot_suffix()) and path.name.endswith(boot_suffix())
            if status.st_mtime < now - STALE_SECONDS or (is_ours and _is_unlocked(path)):
                yield path


def sweep_left_behind(folder: Path) -> None:
    """Delete half-written files whose writers died."""
    for half in left_behind(folder):
        with contextlib.suppress(OSError):  # somebody else's, or another run swept first
            half.unlink()


def _is_unlocked(path: Path) -> bool:
    """Return whether a file's lock is free. NFS refuses to lock a file opened for reading. Raises
    OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)


@cache
def boot_suffix() -> str:
    """Return the suffix of files that this machine writes until it boots again; empty if its boot
    id is unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        return f".{boot.strip()}"
    except (OSError, ValueError):
        return ""
