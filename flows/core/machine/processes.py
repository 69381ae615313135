"""Identifies processes of this machine, and says which still run."""

import os
from functools import cache
from pathlib import Path


@cache
def system() -> str:
    """Return an identifier of the process id namespace, which changes with each boot. Return an
    empty string if it is unknown."""
    try:
        started = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{started} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def start_of(pid: int) -> str:
    """Return the boot and the clock ticks since then at which a process started; empty if there is
    no such process."""
    try:
        return f"{system()} {int(_stat_of(pid)[19])}"
    except (OSError, LookupError, ValueError):
        return ""


def is_alive(pid: int) -> bool:
    """Return whether a process runs. One that was killed may stay listed until its parent looks."""
    try:
        return _stat_of(pid)[0] not in (b"Z", b"X")
    except (OSError, LookupError):
        return False


def _stat_of(pid: int) -> list[bytes]:
    """Return the fields of a process's `stat` after its name. Raises OSError."""
    return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
