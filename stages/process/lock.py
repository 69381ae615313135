"""Gives exclusive use of a device by a kernel lock that is released when its holder dies."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import IO

from artifacts.errors import EnvironmentFault
from artifacts.locks import hold
from stages.process.device import device_uuid

CPU_LOCK = "PENSTOCK_CPU_LOCK"
"""Environment variable: a file whose lock stands for the CPU, on machines where the models of
several users would slow each other down."""
LOCKS = "PENSTOCK_LOCKS"
"""Environment variable: the folder of the GPU locks, if /tmp is not shared by all users."""


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
