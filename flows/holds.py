"""What running jobs need of a store: a small file each, which its process holds locked as long as
it lives; knows nothing of what the jobs do."""

import contextlib
import fcntl
import json
import os
import socket
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts.store import TEMPORARY, FolderStore, fault_of

JOBS = "jobs"
FOREIGN_SECONDS = 86400.0
"""So long after its last wave a job of another machine counts as running: file systems that
machines share do not all tell who holds a lock."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunningJob:
    """A job that some process works on."""

    scopes: frozenset[str]
    """Everything in the store that it reads or writes."""
    who: str
    """In words, for people."""


class Hold:
    """This process's own claim on a store."""

    def __init__(self, store: FolderStore, path: Path) -> None:
        self._store = store
        self._path = path

    def shares(self, scope: str) -> bool:
        """Whether another running job needs this scope too."""
        with contextlib.suppress(OSError):
            os.utime(self._path)  # asked once a wave: a sign of life
        return any(scope in job.scopes for job in running_jobs(self._store, but=self._path))

    def others(self) -> list[RunningJob]:
        return running_jobs(self._store, but=self._path)


@contextlib.contextmanager
def holding(store: FolderStore, scopes: Sequence[str], out: Path) -> Iterator[Hold]:
    """Claim what a job needs until the block ends, or the process does. Raises EnvironmentFault."""
    name = f"{uuid.uuid4().hex}.json"
    half, final = store.root / TEMPORARY / name, store.root / JOBS / name
    try:
        half.parent.mkdir(parents=True, exist_ok=True)
        final.parent.mkdir(exist_ok=True)
        file = half.open("x", encoding="utf-8")
    except OSError as error:
        raise fault_of(error, store.root) from error
    with file:
        try:
            # Before it has its name, or a sweep could take it for a dead one's.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            json.dump(_claim(scopes, out), file)
            file.flush()
            half.rename(final)
        except OSError as error:
            half.unlink(missing_ok=True)
            raise fault_of(error, store.root) from error
        try:
            yield Hold(store, final)
        finally:
            with contextlib.suppress(OSError):
                final.unlink(missing_ok=True)


def _claim(scopes: Sequence[str], out: Path) -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "out": str(out),
        "scopes": list(scopes),
    }


def running_jobs(store: FolderStore, but: Path | None = None) -> list[RunningJob]:
    """The jobs that are worked on now; what a dead process left is removed."""
    found = []
    for path in sorted((store.root / JOBS).glob("*.json")):
        if path == but:
            continue
        with contextlib.suppress(FileNotFoundError), path.open(encoding="utf-8") as file:
            claim = _read(file.read())
            if _is_dead(file.fileno(), claim):
                path.unlink(missing_ok=True)
                continue
            who = f"process {claim['pid']} on {claim['host']}, into {claim['out']}"
            found.append(RunningJob(scopes=frozenset(claim["scopes"]), who=who))
    return found


def _read(text: str) -> dict[str, Any]:
    try:
        claim: dict[str, Any] = json.loads(text)
    except ValueError:
        claim = {}
    return {"pid": 0, "host": socket.gethostname(), "out": "?", "scopes": [], **claim}


def _is_dead(descriptor: int, claim: dict[str, Any]) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held; or nothing can be locked here, and then it is left alone
        return False
    age = time.time() - os.fstat(descriptor).st_mtime
    return claim["host"] == socket.gethostname() or age > FOREIGN_SECONDS
