"""Claims of work among the processes that share one store.

Each namespace has one lock file. A key maps to one byte of it, at an offset derived from the key's
hash. The process that works on a key locks that byte. The file's length counts published packs, so
a process that gets a lock can see whether another process published in the meantime. On a file
system without byte locks every claim is granted: work may then be done twice, and the first
published result wins.
"""

import contextlib
import fcntl
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import TypeVar

from artifacts.disk.faults import disk_faults
from artifacts.disk.locks import lock_byte, open_lock
from artifacts.records.packs import RecordSet, refresh_together
from artifacts.records.store import Store

FOLDER = "claims"
"""Folder in a store. Its files hold no results, and may be deleted while no job runs."""
POLL_SECONDS = 0.2
"""Interval at which claims of other processes are checked."""
Batch = TypeVar("Batch")


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """What a process may claim until the others that were started with it work, too. Otherwise the
    first one to be ready would take all of a small job."""

    file: str = ""
    """Exists as long as the limit holds; empty: no limit."""
    items: int = 0
    """Number of items, rounded up to a batch."""

    def allows(self, claimed: int) -> bool:
        """Return whether a process that has claimed so many items may claim more."""
        return claimed < self.items or not self.file or not os.path.exists(self.file)


class Claims:
    """The locks that one process holds in a namespace. Thread-safe; all threads count as one
    holder."""

    def __init__(self, path: Path) -> None:
        """Open the lock file of a namespace. Raises EnvironmentFault if it cannot be written."""
        self._path = path
        self._own = 0
        """Packs published through this object."""
        self._seen = -1
        """Packs published by others, as of the last check."""
        with disk_faults(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open_lock(path, os.O_APPEND, writes=True)

    def take(self, keys: Sequence[str]) -> bool:
        """Claim all of these keys, or none. Return False if another process holds one of them.
        Raises EnvironmentFault."""
        for at, key in enumerate(keys):
            with disk_faults(self._path):
                granted = self._lock(key, fcntl.F_WRLCK)
            if not granted:
                self.release(keys[:at])
                return False
        return True

    def release(self, keys: Iterable[str]) -> None:
        """Release the claims on these keys."""
        for key in keys:
            with contextlib.suppress(OSError):
                self._lock(key, fcntl.F_UNLCK)

    def published(self) -> None:
        """Signal to other processes that something was published."""
        with contextlib.suppress(OSError):
            self._own += os.write(self._file, b".")

    def has_news(self) -> bool:
        """Return whether others have published since the last call; True at the first call."""
        try:
            theirs = os.fstat(self._file).st_size - self._own
        except OSError:
            theirs = 0
        news, self._seen = theirs != self._seen, theirs
        return news

    def close(self) -> None:
        """Release all claims."""
        os.close(self._file)

    def _lock(self, key: str, kind: int) -> bool:
        start = int.from_bytes(blake2b(key.encode(), digest_size=7).digest())
        return lock_byte(self._file, kind, start)


class WorkClaims:
    """Claims work of a namespace for this process while other processes work on the same items."""

    def __init__(
        self, claims: Claims, record_sets: Sequence[RecordSet], share: Share = Share()
    ) -> None:
        """Take the claims, the record sets to refresh when others have published, and the limit of
        what is claimed."""
        self._claims = claims
        self._share = share
        self._record_sets = record_sets
        self._lock = threading.Lock()
        self._ended = threading.Event()

    def end(self) -> None:
        """Claim nothing more: a thread that waits for another process goes on without it."""
        self._ended.set()

    def take(self, missing: Callable[[], Sequence[str]]) -> bool | None:
        """Claim the missing keys. Return True if this process must compute them, False if none is
        missing, and None if another process works on one of them."""
        self._refresh()
        keys = missing()
        if not keys:
            return False
        if not self._claims.take(keys):
            return None
        # Another process may have published them between the check and the claim.
        self._refresh()
        if not missing():
            self._claims.release(keys)
            return False
        return True

    def _refresh(self) -> None:
        with self._lock:  # a second thread waits for the result of the first one's check
            if self._claims.has_news():
                refresh_together(*self._record_sets)

    def claimed_batches(
        self, batches: Iterable[Batch], missing: Callable[[Batch], Sequence[str]]
    ) -> Iterator[Batch]:
        """Yield the batches that this process must compute, in order. Batches claimed by others
        come last, if their keys are still missing then. `missing` returns a batch's missing
        keys."""
        left, claimed = list(batches), 0
        while left:
            held = []
            for batch in left:
                while not (self._ended.is_set() or self._share.allows(claimed)):
                    self._ended.wait(POLL_SECONDS)
                if self._ended.is_set():
                    return
                granted = self.take(partial(missing, batch))
                if granted:
                    claimed += len(missing(batch))
                    yield batch
                elif granted is None:
                    held.append(batch)
            if len(held) == len(left):
                self._ended.wait(POLL_SECONDS)
            left = held

    def done(self, keys: Iterable[str]) -> None:
        """Release these keys, which were published or never will be, and signal it."""
        self._claims.published()
        self._claims.release(keys)


def can_claim(store: Store) -> bool:
    """Return whether the store's file system has byte locks. Raises EnvironmentFault."""
    path = store.local / FOLDER / "trial"
    with contextlib.closing(Claims(path)) as first, contextlib.closing(Claims(path)) as second:
        key = str(os.getpid())
        return first.take([key]) and not second.take([key])


def refuse_unclaimable(store: Store, record_sets: Iterable[RecordSet]) -> None:
    """Raise EnvironmentFault if the work on one of these record sets cannot be claimed."""
    for record_set in record_sets:
        Claims(store.local / FOLDER / record_set.folder).close()


@contextlib.contextmanager
def claims_at(
    store: Store, *record_sets: RecordSet, share: Share = Share()
) -> Iterator[WorkClaims]:
    """Yield claims on the work of the first of these record sets. They are released at the end of
    the block or of the process. Raises EnvironmentFault."""
    claims = Claims(store.local / FOLDER / record_sets[0].folder)
    work = WorkClaims(claims, record_sets, share)
    try:
        yield work
    finally:
        work.end()
        claims.close()
