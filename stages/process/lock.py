"""Gives exclusive use of a device by a kernel lock that dies with its holder."""

import contextlib
import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO

from artifacts.errors import EnvironmentFault
from artifacts.regular import odd_kind
from stages.process.device import device_uuid

CPU_LOCK = "PENSTOCK_CPU_LOCK"
"""Variable of the environment that names a file whose lock stands for the CPU, on machines where
several people's models would be in each other's way."""
LOCKS = "PENSTOCK_LOCKS"
"""Variable of the environment that names the folder of the GPUs' locks, where /tmp is not
everybody's."""
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EBADF, errno.EINVAL)
"""Errors of a file system that locks nothing, or not a file that is open for reading."""
IN_THE_WAY = (errno.ELOOP, errno.EISDIR, errno.ENXIO)
"""Errors with which opening a link, a folder and a socket fails."""
PID_BYTES = 32
"""More than a process id has digits."""


def hold_device(device: str, on_wait: Callable[[str], None]) -> IO[str] | None:
    """Wait for a device's lock and keep it until the process ends.

    `on_wait` is told who holds it, once, when there is a wait. The file returned must be kept open.
    """
    path = lock_of(device)
    return None if path is None else hold(path, on_wait)


def lock_of(device: str) -> Path | None:
    """Return the path of the lock that stands for a device; None where there is none. The CPU has
    one where CPU_LOCK names it. Raises EnvironmentFault."""
    if device.startswith("cuda"):
        return lock_path(device)
    named = os.environ.get(CPU_LOCK, "")
    return Path(named) if device == "cpu" and named else None


def lock_path(device: str) -> Path:
    """Return the path of a device's lock, one file a physical device. It is the same for all users'
    processes on this machine; in containers, which have a /tmp each, for those that are given one
    folder for their locks. Raises EnvironmentFault when that is no folder."""
    folder = Path(os.environ.get(LOCKS) or "/tmp").absolute()
    if not folder.is_dir():
        raise EnvironmentFault(
            f"{LOCKS} names {folder}, which is no folder",
            hint="Make it, the same for all containers of this host, or unset the variable",
        )
    return folder / f"penstock-{device_uuid(device).replace(':', '-')}.lock"


def hold(path: Path, on_wait: Callable[[str], None]) -> IO[str]:
    """Take the lock at `path`, waiting if it must. The process id inside tells others who has it.
    Raises OSError, and EnvironmentFault for what is no file."""
    file = _open(path)
    if not _lock(file, fcntl.LOCK_NB):
        on_wait(holder(path))
        _lock(file)
    return _sign(file)


def try_hold(path: Path) -> IO[str] | None:
    """Take the lock at `path` if it is free; None when another process has it. Raises OSError, and
    EnvironmentFault for what is no file."""
    file = _open(path)
    if not _lock(file, fcntl.LOCK_NB):
        file.close()
        return None
    return _sign(file)


def _lock(file: IO[str], how: int = 0) -> bool:
    """Return whether this process has the lock now, or none can be had there. None can be had on
    some mounts: then nobody is kept from working."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | how)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    return True


def holder(path: Path) -> str:
    """Return who has the lock, in words."""
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
            # Not without O_EXCL: in a sticky folder, O_CREAT is refused for a file of another user.
            with contextlib.suppress(FileExistsError):
                return os.fdopen(_descriptor(path, os.O_RDWR | os.O_CREAT | os.O_EXCL), "r+")
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            # Of another user in a sticky folder, a lock can be opened for reading only: that
            # suffices.
            return os.fdopen(_descriptor(path, os.O_RDONLY), "r")


def _descriptor(path: Path, how: int) -> int:
    """Open the file at `path`. Raises EnvironmentFault for what is none: who may write to a folder
    of all, such as /tmp, could have others write where they are led to."""
    try:
        descriptor = os.open(path, how | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno in IN_THE_WAY:
            raise _in_the_way(path, odd_kind(os.lstat(path).st_mode)) from error
        raise
    if odd := odd_kind(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _in_the_way(path, odd)
    return descriptor


def _in_the_way(path: Path, odd: str) -> EnvironmentFault:
    return EnvironmentFault(
        f"{path} is {odd or 'no file'}, and a lock must be a file",
        hint="Find out who put it there, remove it, and run the same command again",
    )


def _sign(file: IO[str]) -> IO[str]:
    if file.writable():
        with contextlib.suppress(OSError):  # a full disk: held it is, whatever stands in it
            os.ftruncate(file.fileno(), 0)
            os.pwrite(file.fileno(), f"{os.getpid()}\n".encode(), 0)
    return file
