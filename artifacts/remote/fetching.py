"""Downloads an object in parallel ranges, and resumes where an earlier attempt ended.

The file grows in order, so its length is the resume offset. A partial file from before the last
boot is not trusted: after a power cut its end may hold zeros that were never written.
"""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from functools import partial
from io import BufferedRandom
from pathlib import Path

from artifacts.errors import EnvironmentFault, Unanswered
from artifacts.remote.addresses import RemoteFile
from artifacts.remote.ahead import OnProgress, map_prefetched
from artifacts.remote.finding import part_of, whole
from artifacts.stores.copies import SPARE_BYTES
from artifacts.stores.folder import fault_of

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


def fetch(remote: RemoteFile, file: BufferedRandom, on_progress: OnProgress) -> str:
    """Download the missing part of an object into a file with its beginning, and return the SHA-256
    of the whole. `on_progress` gets the number of new bytes, and may raise. Raises FileChanged,
    FileNotFoundError and EnvironmentFault."""
    there = os.fstat(file.fileno()).st_size
    if there > remote.size:
        file.truncate(there := 0)
    _check_room(remote, there, Path(file.name).parent)
    file.seek(0)
    hashed = hashlib.file_digest(file, "sha256") if there else hashlib.sha256()
    on_progress(there)
    for block in _blocks(remote, there):
        with _disk_errors(file):
            file.write(block)
        hashed.update(block)
        on_progress(len(block))
    with _disk_errors(file):
        file.flush()
        os.fsync(file.fileno())
    if (size := os.fstat(file.fileno()).st_size) != remote.size:
        file.truncate(0)
        raise _cut(remote, size)
    return hashed.hexdigest()


@contextlib.contextmanager
def _disk_errors(file: BufferedRandom) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise fault_of(error, Path(file.name).parent) from error


def _cut(remote: RemoteFile, size: int) -> Unanswered:
    return Unanswered(
        f"{remote.place} gave {size:,} of {remote.size:,} bytes", hint="The same command asks again"
    )


def _blocks(remote: RemoteFile, offset: int) -> Iterator[bytes]:
    """Yield the bytes from `offset` on, in order."""
    if offset == remote.size:
        return
    first = part_of(remote, offset, min(RANGE_BYTES, remote.size - offset))
    if first is None:  # the server does not support ranges
        for block in whole(remote):
            yield block[offset:]
            offset = max(0, offset - len(block))
        return
    yield first
    if len(first) != (size := min(RANGE_BYTES, remote.size - offset)):
        raise _cut(remote, offset + len(first))
    starts = range(offset + size, remote.size, RANGE_BYTES)
    threads = min(RANGES_AT_ONCE, len(starts))
    yield from map_prefetched(partial(_range, remote), starts, threads, held=threads)


def _range(remote: RemoteFile, offset: int) -> bytes:
    size = min(RANGE_BYTES, remote.size - offset)
    found = part_of(remote, offset, size) or b""
    if len(found) != size:
        raise _cut(remote, offset + len(found))
    return found


def check_size(remote: RemoteFile, folder: Path) -> None:
    """Raise Unanswered for an object larger than the whole disk, which is not a real file."""
    if remote.size > (total := shutil.disk_usage(folder).total):
        raise Unanswered(
            f"{remote.place} says that it has {remote.size:,} bytes, and the disk of {folder} has "
            f"{total:,}",
            hint="See that this is the file that you mean",
        )


def _check_room(remote: RemoteFile, there: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < remote.size - there + SPARE_BYTES:
        raise EnvironmentFault(
            f"{folder} has no room for {remote.place}: {remote.size / 1e9:.1f} GB, and "
            f"{free / 1e9:.1f} GB are free",
            hint="Make room, or set PENSTOCK_NEARBY to a folder on a larger disk",
        )
