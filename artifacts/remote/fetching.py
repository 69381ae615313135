"""Downloads an object in parallel ranges, and resumes where an earlier attempt ended.

The file grows in order, so its length is the resume offset. A partial file from before the last
boot is not trusted: after a power cut its end may hold zeros that were never written.

Runs calls on threads that the program does not join, so that it can exit at once while a remote
server is still slow to respond.
"""

import contextlib
import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from functools import partial
from io import BufferedRandom
from itertools import count
from pathlib import Path
from typing import TypeVar

from artifacts.errors import EnvironmentFault, Unanswered
from artifacts.remote.addresses import FarFile
from artifacts.remote.finding import part_of, whole
from artifacts.stores.copies import SPARE_BYTES
from artifacts.stores.folder import fault_of

Item = TypeVar("Item")
Result = TypeVar("Result")
OnProgress = Callable[[int], None]
"""Gets the number of new bytes, and may raise to cancel."""


def run_detached(function: Callable[[Item], Result], item: Item) -> "Future[Result]":
    """Run a function on a thread that is not joined, and return its future."""
    made: Future[Result] = Future()
    threading.Thread(target=_do, args=(function, item, made), name="aside", daemon=True).start()
    return made


def map_prefetched(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int, held: int = 0
) -> Iterator[Result]:
    """Yield the results of a function in the order of the items. `threads` threads compute them
    before the caller asks. At most `held` finished results wait (0: no limit). Raises the
    function's error when the caller reaches that item."""
    left, lock = enumerate(items), threading.Lock()
    made: dict[int, Future[Result]] = {}
    came = threading.Condition(lock)
    room = threading.Semaphore(held) if held else None
    stopped, working = threading.Event(), threads

    def work() -> None:
        nonlocal working
        while True:
            if room is not None:
                room.acquire()
            with lock:
                number, item = (-1, None) if stopped.is_set() else next(left, (-1, None))
                if number < 0:
                    working -= 1
                    came.notify_all()
            if number < 0:
                if room is not None:  # for the next one to see that nothing is left
                    room.release()
                return
            result: Future[Result] = Future()
            _do(function, item, result)  # type: ignore[arg-type]
            with lock:
                made[number] = result
                came.notify_all()

    for _ in range(threads):
        threading.Thread(target=work, name="ahead", daemon=True).start()
    try:
        for number in count():
            with lock:
                while number not in made and working:
                    came.wait()
                if number not in made:
                    return
                result = made.pop(number)
            yield result.result()
            if room is not None:
                room.release()
    finally:
        stopped.set()
        if room is not None:
            room.release()


def _do(function: Callable[[Item], Result], item: Item, made: "Future[Result]") -> None:
    try:
        made.set_result(function(item))
    except BaseException as error:
        made.set_exception(error)


RANGE_BYTES = 4 << 20
"""Bytes per range request."""
RANGES_AT_ONCE = 4
"""Concurrent ranges of one object; each is held in memory."""
BOOT = Path("/proc/sys/kernel/random/boot_id")


def part_name() -> str:
    """Return the name of an unfinished file."""
    with contextlib.suppress(OSError):
        return f"{BOOT.read_text().strip()[:8]}.part"
    return "part"


def fetch(far: FarFile, file: BufferedRandom, on_progress: OnProgress) -> str:
    """Download the missing part of an object into a file with its beginning, and return the SHA-256
    of the whole. `on_progress` gets the number of new bytes, and may raise. Raises FileChanged,
    FileNotFoundError and EnvironmentFault."""
    there = os.fstat(file.fileno()).st_size
    if there > far.size:
        file.truncate(there := 0)
    _check_room(far, there, Path(file.name).parent)
    file.seek(0)
    hashed = hashlib.file_digest(file, "sha256") if there else hashlib.sha256()
    on_progress(there)
    for block in _blocks(far, there):
        with _disk_errors(file):
            file.write(block)
        hashed.update(block)
        on_progress(len(block))
    with _disk_errors(file):
        file.flush()
        os.fsync(file.fileno())
    if (size := os.fstat(file.fileno()).st_size) != far.size:
        file.truncate(0)
        raise _cut(far, size)
    return hashed.hexdigest()


@contextlib.contextmanager
def _disk_errors(file: BufferedRandom) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise fault_of(error, Path(file.name).parent) from error


def _cut(far: FarFile, size: int) -> Unanswered:
    return Unanswered(
        f"{far.place} gave {size:,} of {far.size:,} bytes", hint="The same command asks again"
    )


def _blocks(far: FarFile, offset: int) -> Iterator[bytes]:
    """Yield the bytes from `offset` on, in order."""
    if offset == far.size:
        return
    first = part_of(far, offset, min(RANGE_BYTES, far.size - offset))
    if first is None:  # the server does not support ranges
        for block in whole(far):
            yield block[offset:]
            offset = max(0, offset - len(block))
        return
    yield first
    if len(first) != (size := min(RANGE_BYTES, far.size - offset)):
        raise _cut(far, offset + len(first))
    starts = range(offset + size, far.size, RANGE_BYTES)
    threads = min(RANGES_AT_ONCE, len(starts))
    yield from map_prefetched(partial(_range, far), starts, threads, held=threads)


def _range(far: FarFile, offset: int) -> bytes:
    size = min(RANGE_BYTES, far.size - offset)
    found = part_of(far, offset, size) or b""
    if len(found) != size:
        raise _cut(far, offset + len(found))
    return found


def check_size(far: FarFile, folder: Path) -> None:
    """Raise Unanswered for an object larger than the whole disk, which is not a real file."""
    if far.size > (total := shutil.disk_usage(folder).total):
        raise Unanswered(
            f"{far.place} says that it has {far.size:,} bytes, and the disk of {folder} has "
            f"{total:,}",
            hint="See that this is the file that you mean",
        )


def _check_room(far: FarFile, there: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < far.size - there + SPARE_BYTES:
        raise EnvironmentFault(
            f"{folder} has no room for {far.place}: {far.size / 1e9:.1f} GB, and "
            f"{free / 1e9:.1f} GB are free",
            hint="Make room, or set PENSTOCK_NEARBY to a folder on a larger disk",
        )
