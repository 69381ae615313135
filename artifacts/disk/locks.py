"""Locks of files, which the kernel releases when their holder ends, in whatever way.

There are two kinds. `lock` takes a whole file, also one that is opened for reading, as another
user's may be. `lock_byte` takes one byte of a file that is opened for writing.
"""

import contextlib
import errno
import fcntl
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import IO

from artifacts.disk.paths import UNSUPPORTED
from artifacts.disk.regular_files import odd_kind
from artifacts.errors import EnvironmentFault

NO_LOCKS = (*UNSUPPORTED, errno.ENOLCK)
"""Errors of file systems without locks. EBADF is one only if the file is open for reading: NFS
locks none of these."""
NOT_A_FILE_ERRORS = (errno.ELOOP, errno.EISDIR, errno.ENXIO)
"""Errors when a link, a folder or a socket is opened."""
PID_BYTES = 32
"""More than the digits of a process id."""
FLOCK = struct.Struct("hhxxxxqqixxxx")
"""`struct flock` of Linux x86-64: type, whence, start, length, process (0 for these locks)."""


def lock(file: int, how: int = fcntl.LOCK_EX) -> bool | None:
    """Lock an open file, and wait for it unless `how` has LOCK_NB. Return True if this process has
    the lock, False if another one has it, and None if the file system has no locks. Raises
    OSError."""
    try:
        fcntl.flock(file, how)
    except BlockingIOError:
        return False
    except OSError as error:
        _refuse_unless_lockless(file, error)
        return None
    return True


def try_lock(file: int) -> bool:
    """Return True if this process has the lock of an open file, or if the file system has no locks,
    so that work can go on. Return False if another process has it. Raises OSError."""
    return lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB) is not False


def unlock(file: int) -> None:
    """Release the lock of an open file, also if a process that was forked meanwhile has it open,
    and close it."""
    with contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_UN)
    os.close(file)


def lock_byte(file: int, kind: int, start: int) -> bool:
    """Lock or unlock the byte at `start`; `kind` is F_WRLCK or F_UNLCK. Return and raise as
    `try_lock`."""
    try:
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, FLOCK.pack(kind, os.SEEK_SET, start, 1, 0))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):  # another process has it
            return False
        _refuse_unless_lockless(file, error)
    return True


def _refuse_unless_lockless(file: int, error: OSError) -> None:
    """Raise the error, with the file's name, unless it says that the file system has no locks."""
    if error.errno in NO_LOCKS or (error.errno == errno.EBADF and _is_for_reading(file)):
        return
    name = os.readlink(f"/proc/self/fd/{file}")
    raise OSError(error.errno, error.strerror, name) from error


def _is_for_reading(file: int) -> bool:
    return fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY


def hold(path: Path, on_wait: Callable[[str], None]) -> IO[str]:
    """Take the lock at `path`, and wait if another process holds it. The file holds the process id
    of the holder. Raises OSError, and EnvironmentFault if the path is not a file."""
    file = _opened(path)
    if not try_lock(file.fileno()):
        on_wait(holder(path))
        lock(file.fileno())
    return _sign(file)


def try_hold(path: Path) -> IO[str] | None:
    """Take the lock at `path` if it is free; return None if another process holds it. Raises
    OSError, and EnvironmentFault if the path is not a file."""
    file = _opened(path)
    if not try_lock(file.fileno()):
        file.close()
        return None
    return _sign(file)


def holder(path: Path) -> str:
    """Return a description of the process that holds the lock."""
    try:
        with os.fdopen(_alone(_descriptor(path, os.O_RDONLY), path), "rb") as file:
            pid = file.read(PID_BYTES).strip()
    except (OSError, EnvironmentFault):
        pid = b""
    return f"process {pid.decode()}" if pid.isdigit() else "another process"


def _opened(path: Path) -> IO[str]:
    """Open a lock that may lie in a folder of several users, such as /tmp, where a link of another
    user could redirect the write. Raises EnvironmentFault for one."""
    descriptor = _alone(open_lock(path), path)
    return os.fdopen(descriptor, "r" if _is_for_reading(descriptor) else "r+")


def open_lock(path: Path, more: int = 0, *, writes: bool = False) -> int:
    """Open the file of a lock, which is made if it is not there, and return its descriptor. A file
    of another user is opened for reading, which suffices for `lock`, unless the caller `writes`.
    `more` are further flags. Raises OSError, and EnvironmentFault if the path is not a file."""
    while True:
        try:
            return _descriptor(path, os.O_RDWR | more)
        except FileNotFoundError:
            # O_EXCL, because a sticky folder refuses O_CREAT for a file of another user.
            with contextlib.suppress(FileExistsError):
                return _descriptor(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | more)
        except OSError as error:
            if writes or error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            return _descriptor(path, os.O_RDONLY | more)


def _descriptor(path: Path, how: int) -> int:
    """Open the file at `path`. Raises EnvironmentFault if it is not a regular file."""
    try:
        descriptor = os.open(path, how | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno in NOT_A_FILE_ERRORS:
            raise _not_a_lock_file(path, odd_kind(os.lstat(path).st_mode)) from error
        raise
    if odd := odd_kind(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _not_a_lock_file(path, odd)
    return descriptor


def _alone(descriptor: int, path: Path) -> int:
    """Return the descriptor of a file with one name. Raises EnvironmentFault."""
    if os.fstat(descriptor).st_nlink > 1:
        os.close(descriptor)
        raise _not_a_lock_file(path, "a hard link")
    return descriptor


def _not_a_lock_file(path: Path, odd: str) -> EnvironmentFault:
    return EnvironmentFault(
        f"{path} is {odd or 'not a file'}, but a lock must be a file",
        hint="Find out who put it there, remove it, and run the same command again",
    )


def _sign(file: IO[str]) -> IO[str]:
    if file.writable():
        with contextlib.suppress(OSError):  # a full disk: the lock is held all the same
            os.ftruncate(file.fileno(), 0)
            os.pwrite(file.fileno(), f"{os.getpid()}\n".encode(), 0)
    return file
