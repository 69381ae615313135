"""Gives exclusive use of a device by a kernel lock that is released when its holder dies."""

import contextlib
import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO

from artifacts.errors import EnvironmentFault
from artifacts.regular_files import odd_kind
from stages.process.device import device_uuid

CPU_LOCK = "PENSTOCK_CPU_LOCK"
"""Environment variable: a file whose lock stands for the CPU, on machines where the models of
several users would slow each other down."""
LOCKS = "PENSTOCK_LOCKS"
"""Environment variable: the folder of the GPU locks, if /tmp is not shared by all users."""
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EBADF, errno.EINVAL)
"""Errors of file systems without locks, or without locks on files opened for reading."""
NOT_A_FILE_ERRORS = (errno.ELOOP, errno.EISDIR, errno.ENXIO)
"""Errors when a link, a folder or a socket is opened."""
PID_BYTES = 32
"""More than the digits of a process id."""


def hold_device(device: str, on_wait: Callable[[str], None]) -> IO[str] | None:
    """Wait for a device's lock and hold it until the process ends.

    `on_wait` is called once with the name of the holder if the lock is taken. Keep the returned
    file open.
    """
    path = lock_of(device)
    return None if path is None else hold(path, on_wait)


def lock_of(device: str) -> Path | None:
    """Return the path of the lock of a device; None without one. The CPU has a lock only if
    CPU_LOCK is set. Raises EnvironmentFault."""
    if device.startswith("cuda"):
        return lock_path(device)
    named = os.environ.get(CPU_LOCK, "")
    return Path(named) if device == "cpu" and named else None


def lock_path(device: str) -> Path:
    """Return the path of a GPU's lock: one file per physical device, the same for all users of this
    machine. Containers have a /tmp each, so they need a shared folder in PENSTOCK_LOCKS. Raises
    EnvironmentFault if that is not a folder."""
    folder = Path(os.environ.get(LOCKS) or "/tmp").absolute()
    if not folder.is_dir():
        raise EnvironmentFault(
            f"{LOCKS}: {folder} is not a folder",
            hint="Create it, the same for all containers of this host, or unset the variable",
        )
    return folder / f"penstock-{device_uuid(device).replace(':', '-')}.lock"


def hold(path: Path, on_wait: Callable[[str], None]) -> IO[str]:
    """Take the lock at `path`, and wait if another process holds it. The file holds the process id
    of the holder. Raises OSError, and EnvironmentFault if the path is not a file."""
    file = _open(path)
    if not _lock(file, fcntl.LOCK_NB):
        on_wait(holder(path))
        _lock(file)
    return _sign(file)


def try_hold(path: Path) -> IO[str] | None:
    """Take the lock at `path` if it is free; return None if another process holds it. Raises
    OSError, and EnvironmentFault if the path is not a file."""
    file = _open(path)
    if not _lock(file, fcntl.LOCK_NB):
        file.close()
        return None
    return _sign(file)


def _lock(file: IO[str], how: int = 0) -> bool:
    """Return True if this process has the lock, or if the file system has no locks, so that work
    can go on. Return False if another process has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | how)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    return True


def holder(path: Path) -> str:
    """Return a description of the process that holds the lock."""
    try:
        with os.fdopen(_descriptor(path, os.O_RDONLY), "rb") as file:
            pid = file.read(PID_BYTES).strip()
    except (OSError, EnvironmentFault):
        pid = b""
    return f"process {pid.decode()}" if pid.isdigit() else "another process"


def _open(path: Path) -> IO[str]:
    while True:
        try:
            return os.fdopen(_descriptor(path, os.O_RDWR), "r+")
        except FileNotFoundError:
            # O_EXCL, because a sticky folder refuses O_CREAT for a file of another user.
            with contextlib.suppress(FileExistsError):
                return os.fdopen(_descriptor(path, os.O_RDWR | os.O_CREAT | os.O_EXCL), "r+")
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            # A lock of another user in a sticky folder can only be opened for reading, which
            # suffices.
            return os.fdopen(_descriptor(path, os.O_RDONLY), "r")


def _descriptor(path: Path, how: int) -> int:
    """Open the file at `path`. Raises EnvironmentFault if it is not a regular file: in a shared
    folder such as /tmp, a link of another user could redirect the write."""
    try:
        descriptor = os.open(path, how | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno in NOT_A_FILE_ERRORS:
            raise _not_a_lock_file(path, odd_kind(os.lstat(path).st_mode)) from error
        raise
    found = os.fstat(descriptor)
    if odd := odd_kind(found.st_mode) or ("a hard link" if found.st_nlink > 1 else ""):
        os.close(descriptor)
        raise _not_a_lock_file(path, odd)
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
