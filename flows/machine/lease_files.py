"""Notes running jobs in a folder, in a small file each, locked while its process lives. It knows
nothing of what the jobs do.

Where nothing can be locked, as on some mounts, and where other machines do not see who holds a
lock, the file is a lease: its process touches it every few minutes, and a dead one's grows old.
"""

import contextlib
import fcntl
import json
import os
import socket
import uuid
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from artifacts.stamps import stamp_of
from artifacts.store import fault_of
from artifacts.stores.local import TEMPORARY, clock_of
from flows.machine.lease_notes import LARGEST_NOTE, LEASE_SECONDS, beating, read_note, system

JOBS = "jobs"


@contextlib.contextmanager
def noted_in(folder: Path, note: Mapping[str, Any]) -> Iterator[str]:
    """Keep a note of a job in a folder until the block ends, or the process does; its name. Raises
    EnvironmentFault."""
    name = f"{uuid.uuid4().hex}.json"
    half, final = folder / TEMPORARY / name, folder / JOBS / name
    try:
        half.parent.mkdir(parents=True, exist_ok=True)
        final.parent.mkdir(exist_ok=True)
        file = half.open("x", encoding="utf-8")
    except OSError as error:
        raise fault_of(error, folder) from error
    with file:
        # Before it has its name, or a sweep could take it for a dead one's. Where nothing can be
        # locked, it is a lease.
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            json.dump(note, file)
            file.flush()
            half.rename(final)
        except OSError as error:
            half.unlink(missing_ok=True)
            raise fault_of(error, folder) from error
        try:
            with beating(partial(os.utime, final)):
                yield name
        finally:
            with contextlib.suppress(OSError):
                final.unlink(missing_ok=True)


def living_in(folder: Path, but: str) -> Iterator[dict[str, Any]]:
    """Yield the notes of all jobs that are worked on now, but for the one of this name. Remove what
    a dead process left."""
    for path in sorted((folder / JOBS).glob("*.json")):
        if path.name == but:
            continue
        # It may have ended meanwhile, or be no file at all.
        with contextlib.suppress(OSError), _opened(path) as descriptor:
            note = read_note(os.pread(descriptor, LARGEST_NOTE, 0))
            if _is_dead(descriptor, note, folder):
                path.unlink(missing_ok=True)
            else:
                yield note


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    """Open a claim, for writing if that may be: NFS locks no file otherwise."""
    stamp_of(path)
    flags = os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, os.O_RDWR | flags)
    except OSError:  # of another user, or a store that can only be read
        descriptor = os.open(path, os.O_RDONLY | flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _is_dead(descriptor: int, note: Mapping[str, Any], folder: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if note["host"] == socket.gethostname():
            return True
    except BlockingIOError:
        return False
    except OSError:  # nothing can be locked here
        if note["system"] and note["system"] == system():
            return not os.path.exists(f"/proc/{note['pid']}")
    return clock_of(folder) - os.fstat(descriptor).st_mtime > LEASE_SECONDS
