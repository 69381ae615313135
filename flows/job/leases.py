"""Notes what running jobs need of a store, in a small file each, locked while its process lives. It
knows nothing of what the jobs do.

Where nothing can be locked, as on some mounts, and where other machines do not see who holds a
lock, the file is a lease: its process touches it every few minutes, and a dead one's grows old.
"""

import contextlib
import fcntl
import json
import os
import socket
import threading
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from artifacts.stamps import stamp_of
from artifacts.store import Store, fault_of
from artifacts.stores.local import TEMPORARY, clock_of

JOBS = "jobs"
BEAT_SECONDS = 300.0
"""Seconds between a job's signs of life."""
LEASE_SECONDS = 3600.0
"""Seconds after its last sign of life in which a job counts as running whose lock tells nothing."""
LARGEST_CLAIM = 1 << 20
"""Most bytes of a claim; a job has some dozens of namespaces of 64 each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunningJob:
    """A job that some process works on."""

    namespaces: frozenset[str]
    """All namespaces in the store that it reads or writes."""
    who: str
    """Its process, host and folder in words, for people."""


class Lease:
    """This process's own lease on a store."""

    def __init__(self, store: Store, path: Path) -> None:
        self._store = store
        self._path = path

    def shares(self, namespace: str) -> bool:
        """Return whether another running job needs this namespace too."""
        return any(namespace in job.namespaces for job in self.others())

    def others(self) -> list[RunningJob]:
        return running_jobs(self._store, but=self._path)


@contextlib.contextmanager
def leased(store: Store, namespaces: Sequence[str], out: Path) -> Iterator[Lease]:
    """Claim what a job needs until the block ends, or the process does. Raises EnvironmentFault."""
    name = f"{uuid.uuid4().hex}.json"
    half, final = store.local / TEMPORARY / name, store.local / JOBS / name
    try:
        half.parent.mkdir(parents=True, exist_ok=True)
        final.parent.mkdir(exist_ok=True)
        file = half.open("x", encoding="utf-8")
    except OSError as error:
        raise fault_of(error, store.local) from error
    with file:
        # Before it has its name, or a sweep could take it for a dead one's. Where nothing can be
        # locked, it is a lease.
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            json.dump(_claim(namespaces, out), file)
            file.flush()
            half.rename(final)
        except OSError as error:
            half.unlink(missing_ok=True)
            raise fault_of(error, store.local) from error
        try:
            with _beating(final):
                yield Lease(store, final)
        finally:
            with contextlib.suppress(OSError):
                final.unlink(missing_ok=True)


@contextlib.contextmanager
def _beating(path: Path) -> Iterator[None]:
    """Give signs of life of this process, by the clock of the file system."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(path)

    thread = threading.Thread(target=beat, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _claim(namespaces: Sequence[str], out: Path) -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "system": _system(),
        "out": str(out),
        "scopes": list(namespaces),
    }


def running_jobs(store: Store, but: Path | None = None) -> list[RunningJob]:
    """Return the jobs that are worked on now, and remove what a dead process left."""
    found = []
    for path in sorted((store.local / JOBS).glob("*.json")):
        if path == but:
            continue
        # It may have ended meanwhile, or be no file at all.
        with contextlib.suppress(OSError), _opened(path) as descriptor:
            claim = _read(os.pread(descriptor, LARGEST_CLAIM, 0))
            if _is_dead(descriptor, claim, store.local):
                path.unlink(missing_ok=True)
                continue
            who = f"process {claim['pid']} on {claim['host']}, into {claim['out']}"
            found.append(RunningJob(namespaces=frozenset(claim["scopes"]), who=who))
    return found


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


def _read(text: bytes) -> dict[str, Any]:
    """Return a claim; for a file that holds none, that of a job which needs nothing."""
    blank = {"pid": 0, "host": socket.gethostname(), "system": "", "out": "?", "scopes": []}
    try:
        claim = {**blank, **json.loads(text)}
        fits = isinstance(claim["scopes"], list) and all(type(s) is str for s in claim["scopes"])
    except (ValueError, TypeError, RecursionError):
        return blank
    return claim if fits else blank


def _is_dead(descriptor: int, claim: dict[str, Any], local: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if claim["host"] == socket.gethostname():
            return True
    except BlockingIOError:
        return False
    except OSError:  # nothing can be locked here
        if claim["system"] and claim["system"] == _system():
            return not os.path.exists(f"/proc/{claim['pid']}")
    return clock_of(local) - os.fstat(descriptor).st_mtime > LEASE_SECONDS


@cache
def _system() -> str:
    """Return the space in which process ids are unique, until the machine is started anew. Returns
    an empty string where that is not told."""
    try:
        started = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{started} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""
