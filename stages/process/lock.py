"""Exclusive use of a device, as a kernel lock that dies with its holder; knows nothing of what the
device does."""

import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO

from stages.process.memory import device_uuid

CPU_LOCK = "PENSTOCK_CPU_LOCK"
"""In the environment: a file whose lock stands for the CPU, on machines where several people's
models would be in each other's way."""


def hold_device(device: str, on_wait: Callable[[str], None]) -> IO[str] | None:
    """Wait for a device's lock and hold it until the process ends; the CPU has one where CPU_LOCK
    names it.

    `on_wait` is told who holds it, once, when there is a wait. The file returned must be kept open.
    """
    if device.startswith("cuda"):
        return hold(lock_path(device), on_wait)
    named = os.environ.get(CPU_LOCK, "")
    return hold(Path(named), on_wait) if device == "cpu" and named else None


def lock_path(device: str) -> Path:
    """One file a physical device, the same for all users' processes on this machine."""
    return Path("/tmp") / f"penstock-{device_uuid(device).replace(':', '-')}.lock"


def hold(path: Path, on_wait: Callable[[str], None]) -> IO[str]:
    """Take the lock at `path`, waiting if it must; the process id inside tells others who has
    it."""
    file = _open(path)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        on_wait(holder(path))
        fcntl.flock(file, fcntl.LOCK_EX)
    return _sign(file)


def try_hold(path: Path) -> IO[str] | None:
    """Take the lock at `path` if it is free; None when another process has it."""
    file = _open(path)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return _sign(file)


def holder(path: Path) -> str:
    """Who has the lock, in words."""
    try:
        pid = path.read_text().strip()
    except OSError:
        pid = ""
    return f"process {pid}" if pid else "another process"


def _open(path: Path) -> IO[str]:
    try:
        # Of another user in a sticky folder, a lock can be opened for reading only: that suffices.
        return path.open("r+") if os.access(path, os.W_OK) else path.open("r")
    except FileNotFoundError:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        return os.fdopen(descriptor, "r+")


def _sign(file: IO[str]) -> IO[str]:
    if not file.writable():
        return file
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file
