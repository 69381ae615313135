"""Leases that list which records of a store the running jobs need, on any machine.

A lease is a small object or file that its process renews every few minutes. The lease of a dead
process expires by the clock of the storage. In a folder, a file lock shows at once whether the
owner is alive.

A file lies where the frames do, which is on this machine also if the store is a bucket. The lines
after its note are the digests of the job's media, so that no note is ever seen without them.
"""

import contextlib
import fcntl
import json
import os
import socket
import threading
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NotRequired, TypedDict

from artifacts.disk.faults import disk_faults, fault_of
from artifacts.disk.locks import lock
from artifacts.disk.stamps import stamp_of
from artifacts.errors import EnvironmentFault
from artifacts.records.store import Store
from artifacts.records.stores.local import TEMPORARY, clock_of, sweep_left_behind
from flows.core.machine.processes import is_alive, system

BEAT_SECONDS = 300.0
"""Seconds between two renewals of a lease."""
LEASE_SECONDS = 3600.0
"""Seconds after its last renewal in which a job counts as running, if its lock gives no answer."""
LARGEST_NOTE = 1 << 20
"""Largest note in bytes; a job has a few dozen namespaces of 64 bytes each."""


class Note(TypedDict):
    """What a lease says of its job, as JSON."""

    pid: int
    host: str
    system: str
    """Identifier of the process id namespace; empty: unknown."""
    out: str
    namespaces: list[str]
    media: NotRequired[int | None]
    """Number of the digests that follow in a folder's file; None: the job needs all media."""


def note_of(namespaces: Sequence[str], out: Path) -> Note:
    """Return the note of this process about a job."""
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "system": system(),
        "out": str(out),
        "namespaces": list(namespaces),
    }


def read_note(text: bytes) -> Note:
    """Return the parsed note, which is the first line. An invalid text yields the note of a job
    that needs nothing."""
    blank = Note(pid=0, host=socket.gethostname(), system="", out="?", namespaces=[])
    try:
        note: Note = {**blank, **json.loads(text.partition(b"\n")[0])}
        names = note["namespaces"]
        fits = isinstance(names, list) and all(type(name) is str for name in names)
    except (ValueError, TypeError, RecursionError):
        return blank
    return note if fits else blank


@contextlib.contextmanager
def heartbeat(show: Callable[[], object]) -> Iterator[None]:
    """Call `show` at regular intervals, to prove that this process is alive."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError, EnvironmentFault):
                show()

    thread = threading.Thread(target=beat, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


JOBS = "jobs"


@contextlib.contextmanager
def hold_note_in(folder: Path, note: Note, media: Iterable[str] | None = None) -> Iterator[str]:
    """Keep a note of a job, and which media it needs, in a folder until the block or the process
    ends, and yield its name. Raises EnvironmentFault."""
    digests = sorted({*(media or ())})
    line = json.dumps({**note, "media": None if media is None else len(digests)})
    name = f"{uuid.uuid4().hex}.json"
    temporary, final = folder / TEMPORARY / name, folder / JOBS / name
    with disk_faults(folder):
        temporary.parent.mkdir(parents=True, exist_ok=True)
        final.parent.mkdir(exist_ok=True)
        file = temporary.open("x", encoding="utf-8")
    with file:
        # The lock is taken before the note gets its final name. Otherwise a sweep could delete it
        # as that of a dead process. On a file system without locks, the note's age decides.
        try:
            lock(file.fileno())
            file.writelines(f"{text}\n" for text in (line, *digests))
            file.flush()
            os.fsync(file.fileno())  # other machines see an open file only then
            temporary.rename(final)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise fault_of(error, folder) from error
        try:
            with heartbeat(partial(os.utime, final)):
                yield name
        finally:
            with contextlib.suppress(OSError):
                final.unlink(missing_ok=True)
            sweep_left_behind(folder)  # of the stages that this job stopped


def live_notes_in(folder: Path, but: str) -> Iterator[tuple[Note, int]]:
    """Yield the notes of all jobs that run now, except the one named `but`, each with its open
    file. Remove those of dead processes."""
    for path in sorted((folder / JOBS).glob("*.json")):
        if path.name == but:
            continue
        # The job may have ended in the meantime, or the path may be no file.
        with contextlib.suppress(OSError), _opened(path) as descriptor:
            note = read_note(os.pread(descriptor, LARGEST_NOTE, 0))
            if _is_dead(descriptor, note, folder):
                path.unlink(missing_ok=True)
            else:
                yield note, descriptor


def _needed(note: Note, descriptor: int, media: Iterable[str]) -> set[str]:
    """Return which of these media a job needs: those that its open file lists, or all of them if it
    lists none."""
    lines: list[bytes] = []
    with contextlib.suppress(OSError):
        lines = os.pread(descriptor, os.fstat(descriptor).st_size, 0).split(b"\n")
    if note.get("media") != len(lines) - 2:  # it names none, or the file is cut
        return set(media)
    return {medium.decode() for medium in {*lines}.intersection(map(str.encode, media))}


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    """Open a note, writable if permitted: NFS locks no read-only file."""
    stamp_of(path)
    flags = os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, os.O_RDWR | flags)
    except OSError:  # a file of another user, or a read-only store
        descriptor = os.open(path, os.O_RDONLY | flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _is_dead(descriptor: int, note: Note, folder: Path) -> bool:
    try:
        has_lock = lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        has_lock = None
    if has_lock is False:
        return False
    if has_lock and note["host"] == socket.gethostname():
        return True
    if has_lock is None and note["system"] and note["system"] == system():
        return not is_alive(note["pid"])
    return clock_of(folder) - os.fstat(descriptor).st_mtime > LEASE_SECONDS


if TYPE_CHECKING:  # imports the bucket client
    from artifacts.records.stores.bucket_client import BucketLeases


@dataclass(frozen=True, kw_only=True, slots=True)
class RunningJob:
    """A job that a live process works on."""

    namespaces: frozenset[str]
    """All cache namespaces that it reads or writes."""
    description: str
    """Its process, host and folder, for display."""


@dataclass(frozen=True, slots=True)
class Lease:
    """This process's own lease on a store: its name, that of its file, and what ends it."""

    store: Store
    name: str
    file: str
    end: Callable[[], object]

    def needed_elsewhere(self, namespace: str, media: Collection[str]) -> set[str]:
        """Return those of these media whose frames in this namespace another running job needs.
        Raises EnvironmentFault."""
        needed: set[str] = set()
        notes = live_notes_in(self.store.machine_folder, self.file) if media else ()
        for note, descriptor in notes:
            if namespace in note["namespaces"]:
                needed |= _needed(note, descriptor, media)
        return needed

    def others(self) -> list[RunningJob]:
        return running_jobs(self.store, but=self.name)


@contextlib.contextmanager
def leased(
    store: Store, namespaces: Sequence[str], out: Path, media: Iterable[str] | None = None
) -> Iterator[Lease]:
    """Hold a lease on what a job needs until it is ended, or the block or the process ends. It
    needs the records of these media, given by their digests; None: of all. Raises
    EnvironmentFault."""
    note = note_of(namespaces, out)
    with contextlib.ExitStack() as held:
        name = file = held.enter_context(hold_note_in(store.machine_folder, note, media))
        if store.job_leases is not None:
            name = held.enter_context(_hold_note_on(store.job_leases, note))
        yield Lease(store, name, file, held.close)


def running_jobs(store: Store, but: str = "") -> list[RunningJob]:
    """Return the jobs that run now, except the one named `but`. Remove leases of dead processes.
    Raises EnvironmentFault."""
    notes = (
        (note for note, _ in live_notes_in(store.machine_folder, but))
        if store.job_leases is None
        else _live_notes_on(store.job_leases, but)
    )
    return [
        RunningJob(
            namespaces=frozenset(note["namespaces"]),
            description=f"process {note['pid']} on {note['host']}, into {note['out']}",
        )
        for note in notes
    ]


@contextlib.contextmanager
def _hold_note_on(job_leases: "BucketLeases", note: Note) -> Iterator[str]:
    name = job_leases.create(json.dumps(note).encode())
    try:
        with heartbeat(partial(job_leases.renew, name)):
            yield name
    finally:
        job_leases.remove(name)


def _live_notes_on(job_leases: "BucketLeases", but: str) -> Iterator[Note]:
    for name, age in job_leases.ages():
        if name == but:
            continue
        note = read_note(job_leases.read(name))
        is_here = note["system"] and note["system"] == system()
        if age > LEASE_SECONDS or (is_here and not is_alive(note["pid"])):
            job_leases.expire(name)
        elif note["namespaces"]:
            yield note
