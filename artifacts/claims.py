"""File locks by which processes that share a store divide the work among themselves.

Each namespace has one lock file. A key maps to one byte of it, at an offset derived from the key's
hash. The process that works on a key locks that byte; the kernel releases the lock when the process
ends, in whatever way. The file's length counts published packs, so a process that gets a lock can
see whether another process published in the meantime. On a file system without byte locks every
claim is granted: work may then be done twice, and the first published result wins.
"""

import contextlib
import errno
import fcntl
import os
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import TypeVar

from artifacts.packs import RecordSet
from artifacts.record_union import refresh_together
from artifacts.store import Store

FOLDER = "claims"
"""Folder of a store: its files say nothing of what is stored, and may be deleted when no job
runs."""
POLL_SECONDS = 0.2
"""How often it is asked whether another process is through."""
FLOCK = struct.Struct("hhxxxxqqixxxx")
"""`struct flock` of Linux x86-64: type, whence, start, length, process (0 of such locks)."""

Batch = TypeVar("Batch")


class Claims:
    """The locks that one process holds in a namespace. Thread-safe; all threads count as one
    holder."""

    def __init__(self, path: Path) -> None:
        self._file = -1
        self._own = 0
        """Packs that were published through this object."""
        self._seen = -1
        """Packs of others that were there when it was last looked."""
        with contextlib.suppress(OSError):  # a store that cannot be written tells that itself
            path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
            self._file = os.open(path, flags, 0o666)

    def take(self, keys: Sequence[str]) -> bool:
        """Claim all of these keys, or none: False when another process has one of them."""
        for at, key in enumerate(keys):
            try:
                self._lock(key, fcntl.F_WRLCK)
            except (BlockingIOError, PermissionError):
                self.release(keys[:at])
                return False
            except OSError:  # no locks here
                return True
        return True

    def release(self, keys: Iterable[str]) -> None:
        """Give keys back."""
        for key in keys:
            with contextlib.suppress(OSError):
                self._lock(key, fcntl.F_UNLCK)

    def published(self) -> None:
        """Tell the others that there is something new."""
        with contextlib.suppress(OSError):
            self._own += os.write(self._file, b".")

    def has_news(self) -> bool:
        """Return whether others have published since this was asked for the last time; at first,
        yes."""
        try:
            theirs = os.fstat(self._file).st_size - self._own
        except OSError:
            theirs = 0
        news, self._seen = theirs != self._seen, theirs
        return news

    def close(self) -> None:
        """Give everything back."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _lock(self, key: str, kind: int) -> None:
        if self._file < 0:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        start = int.from_bytes(blake2b(key.encode(), digest_size=7).digest())
        fcntl.fcntl(self._file, fcntl.F_OFD_SETLK, FLOCK.pack(kind, os.SEEK_SET, start, 1, 0))


class WorkClaims:
    """Claims work of a namespace for this process while other processes work on the same items."""

    def __init__(self, claims: Claims, record_sets: Sequence[RecordSet]) -> None:
        """Take the claims and the record sets, which are brought up to date when others have
        published."""
        self._claims = claims
        self._record_sets = record_sets
        self._lock = threading.Lock()

    def take(self, lacking: Callable[[], Sequence[str]]) -> bool | None:
        """Return whether this process is to make now what is lacking; None when another is at some
        of it. `lacking` tells the keys that are to be made, as far as is known."""
        self._look()
        keys = lacking()
        if not keys:
            return False
        if not self._claims.take(keys):
            return None
        # Who had them may have published them between the look and the claim.
        self._look()
        if not lacking():
            self._claims.release(keys)
            return False
        return True

    def _look(self) -> None:
        with self._lock:  # who asks while another thread looks waits for what it sees
            if self._claims.has_news():
                refresh_together(*self._record_sets)

    def mine(
        self, batches: Iterable[Batch], lacking: Callable[[Batch], Sequence[str]]
    ) -> Iterator[Batch]:
        """Yield the batches that this process is to make, in order. Those that others are at come
        last, once it is known that they did not make them. `lacking` tells which keys of a batch
        are in no record set."""
        left = list(batches)
        while left:
            held = []
            for batch in left:
                turn = self.take(partial(lacking, batch))
                if turn:
                    yield batch
                elif turn is None:
                    held.append(batch)
            if len(held) == len(left):
                time.sleep(POLL_SECONDS)
            left = held

    def done(self, keys: Iterable[str]) -> None:
        """Tell that these keys were published, or never will be."""
        self._claims.published()
        self._claims.release(keys)


class UnsharedWork:
    """Grants every claim at once, for work that no other process shares."""

    def mine(
        self, batches: Iterable[Batch], lacking: Callable[[Batch], Sequence[str]]
    ) -> Iterator[Batch]:
        """Yield the batches, as they come."""
        return iter(batches)

    def done(self, keys: Iterable[str]) -> None:
        """Tell nobody."""


@contextlib.contextmanager
def turns_at(store: Store, *record_sets: RecordSet) -> Iterator[WorkClaims]:
    """Take turns at what the first of these record sets holds, until the block or the process
    ends."""
    claims = Claims(store.local / FOLDER / record_sets[0].folder)
    try:
        yield WorkClaims(claims, record_sets)
    finally:
        claims.close()
