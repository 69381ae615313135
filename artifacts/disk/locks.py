"""Locks of files, which the kernel releases when their holder ends, in whatever way.

There are two kinds. `lock` takes a whole file, also one that is opened for reading, as another
user's may be. `lock_byte` takes one byte of a file that is opened for writing.

Claims divide work among processes that share a store. Each namespace has one lock file. A key maps
to one byte of it, at an offset derived from the key's hash. The process that works on a key locks
that byte. The file's length counts published packs, so a process that gets a lock can see whether
another process published in the meantime. On a file system without byte locks every claim is
granted: work may then be done twice, and the first published result wins.
"""

import contextlib
import errno
import fcntl
import os
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import IO, TypeVar

from artifacts.disk.paths import UNSUPPORTED
from artifacts.disk.regular_files import odd_kind
from artifacts.errors import EnvironmentFault
from artifacts.records.packs import RecordSet, refresh_together
from artifacts.records.store import Store, disk_faults

NO_LOCKS = (*UNSUPPORTED, errno.ENOLCK)
"""Errors of file systems without locks. EBADF is one only if the file is open for reading: NFS
locks none of these."""
NOT_A_FILE_ERRORS = (errno.ELOOP, errno.EISDIR, errno.ENXIO)
"""Errors when a link, a folder or a socket is opened."""
PID_BYTES = 32
"""More than the digits of a process id."""
FLOCK = struct.Struct("hhxxxxqqixxxx")
"""`struct flock` of Linux x86-64: type, whence, start, length, process (0 for these locks)."""


def lock(file: int, how: int = fcntl.LOCK_EX) -> bool | None:
    """Lock an open file, and wait for it unless `how` has LOCK_NB. Return True if this process has
    the lock, False if another one has it, and None if the file system has no locks. Raises
    OSError."""
    try:
        fcntl.flock(file, how)
    except BlockingIOError:
        return False
    except OSError as error:
        _refuse_unless_lockless(file, error)
        return None
    return True


def try_lock(file: int) -> bool:
    """Return True if this process has the lock of an open file, or if the file system has no locks,
    so that work can go on. Return False if another process has it. Raises OSError."""
    return lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB) is not False


def unlock(file: int) -> None:
    """Release the lock of an open file, also if a process that was forked meanwhile has it open,
    and close it."""
    with contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_UN)
    os.close(file)


def lock_byte(file: int, kind: int, start: int) -> bool:
    """Lock or unlock the byte at `start`; `kind` is F_WRLCK or F_UNLCK. Return and raise as
    `try_lock`."""
    try:
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, FLOCK.pack(kind, os.SEEK_SET, start, 1, 0))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):  # another process has it
            return False
        _refuse_unless_lockless(file, error)
    return True


def _refuse_unless_lockless(file: int, error: OSError) -> None:
    """Raise the error, with the file's name, unless it says that the file system has no locks."""
    if error.errno in NO_LOCKS or (error.errno == errno.EBADF and _is_for_reading(file)):
        return
    name = os.readlink(f"/proc/self/fd/{file}")
    raise OSError(error.errno, error.strerror, name) from error


def _is_for_reading(file: int) -> bool:
    return fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY


def hold(path: Path, on_wait: Callable[[str], None]) -> IO[str]:
    """Take the lock at `path`, and wait if another process holds it. The file holds the process id
    of the holder. Raises OSError, and EnvironmentFault if the path is not a file."""
    file = _opened(path)
    if not try_lock(file.fileno()):
        on_wait(holder(path))
        lock(file.fileno())
    return _sign(file)


def try_hold(path: Path) -> IO[str] | None:
    """Take the lock at `path` if it is free; return None if another process holds it. Raises
    OSError, and EnvironmentFault if the path is not a file."""
    file = _opened(path)
    if not try_lock(file.fileno()):
        file.close()
        return None
    return _sign(file)


def holder(path: Path) -> str:
    """Return a description of the process that holds the lock."""
    try:
        with os.fdopen(_alone(_descriptor(path, os.O_RDONLY), path), "rb") as file:
            pid = file.read(PID_BYTES).strip()
    except (OSError, EnvironmentFault):
        pid = b""
    return f"process {pid.decode()}" if pid.isdigit() else "another process"


def _opened(path: Path) -> IO[str]:
    """Open a lock that may lie in a folder of several users, such as /tmp, where a link of another
    user could redirect the write. Raises EnvironmentFault for one."""
    descriptor = _alone(open_lock(path), path)
    return os.fdopen(descriptor, "r" if _is_for_reading(descriptor) else "r+")


def open_lock(path: Path, more: int = 0, *, writes: bool = False) -> int:
    """Open the file of a lock, which is made if it is not there, and return its descriptor. A file
    of another user is opened for reading, which suffices for `lock`, unless the caller `writes`.
    `more` are further flags. Raises OSError, and EnvironmentFault if the path is not a file."""
    while True:
        try:
            return _descriptor(path, os.O_RDWR | more)
        except FileNotFoundError:
            # O_EXCL, because a sticky folder refuses O_CREAT for a file of another user.
            with contextlib.suppress(FileExistsError):
                return _descriptor(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | more)
        except OSError as error:
            if writes or error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            return _descriptor(path, os.O_RDONLY | more)


def _descriptor(path: Path, how: int) -> int:
    """Open the file at `path`. Raises EnvironmentFault if it is not a regular file."""
    try:
        descriptor = os.open(path, how | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno in NOT_A_FILE_ERRORS:
            raise _not_a_lock_file(path, odd_kind(os.lstat(path).st_mode)) from error
        raise
    if odd := odd_kind(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _not_a_lock_file(path, odd)
    return descriptor


def _alone(descriptor: int, path: Path) -> int:
    """Return the descriptor of a file with one name. Raises EnvironmentFault."""
    if os.fstat(descriptor).st_nlink > 1:
        os.close(descriptor)
        raise _not_a_lock_file(path, "a hard link")
    return descriptor


def _not_a_lock_file(path: Path, odd: str) -> EnvironmentFault:
    return EnvironmentFault(
        f"{path} is {odd or 'not a file'}, but a lock must be a file",
        hint="Find out who put it there, remove it, and run the same command again",
    )


def _sign(file: IO[str]) -> IO[str]:
    if file.writable():
        with contextlib.suppress(OSError):  # a full disk: the lock is held all the same
            os.ftruncate(file.fileno(), 0)
            os.pwrite(file.fileno(), f"{os.getpid()}\n".encode(), 0)
    return file


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


class UnsharedWork:
    """Grants every claim at once, for work that no other process shares."""

    def claimed_batches(
        self, batches: Iterable[Batch], missing: Callable[[Batch], Sequence[str]]
    ) -> Iterator[Batch]:
        """Yield all batches."""
        return iter(batches)

    def done(self, keys: Iterable[str]) -> None:
        """Do nothing."""


def can_claim(store: Store) -> bool:
    """Return whether the store's file system has byte locks. Raises EnvironmentFault."""
    path = store.local / FOLDER / "trial"
    with contextlib.closing(Claims(path)) as first, contextlib.closing(Claims(path)) as second:
        key = str(os.getpid())
        return first.take([key]) and not second.take([key])


def refuse_unclaimable(store: Store, record_sets: Iterable[RecordSet]) -> None:
    """Raise EnvironmentFault if the work on one of these record sets cannot be claimed."""
    for each in record_sets:
        Claims(store.local / FOLDER / each.folder).close()


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
