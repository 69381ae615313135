"""Recognizes a process by its start, so that a signal never reaches another one that has its number
by now, or that a file names."""

import os
import signal
from pathlib import Path

from artifacts.errors import EnvironmentFault
from flows.machine.leases import system


def start_of(pid: int) -> str:
    """Return the boot and the clock ticks since then at which a process started; empty if there is
    no such process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return f"{system()} {int(fields[19])}"
    except (OSError, LookupError, ValueError):
        return ""


def interrupt(pid: int, start: str) -> None:
    """Send SIGINT to a process if it is the one that started then. Raises EnvironmentFault."""
    if not start:
        return
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    except OSError as error:
        raise EnvironmentFault(
            f"process {pid} cannot be stopped from here: {error.strerror}",
            hint=f"Run `kill -INT {pid}` if it is the run",
        ) from error
    try:
        # The handle stays that of one process, whatever gets its number now.
        if start_of(pid) == start:
            signal.pidfd_send_signal(handle, signal.SIGINT)
    finally:
        os.close(handle)


def leader_with(variable: str, value: str) -> int:
    """Return the process of this user that leads a session and was started with this variable in
    its environment; 0: none."""
    wanted = f"{variable}={value}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            pid = int(folder.name)
            if os.getsid(pid) == pid and wanted in (folder / "environ").read_bytes().split(b"\0"):
                return pid
        except (OSError, ValueError):
            continue
    return 0
