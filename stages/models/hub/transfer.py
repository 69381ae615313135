"""Downloads a large file of a hub into its cache.

The download resumes where it stopped, waits out a broken connection, and verifies the checksum.
"""

import errno
import hashlib
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from artifacts.disk.locks import try_lock
from artifacts.errors import EnvironmentFault
from stages.models.hub.checkpoint import WeightFile

WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds before each retry while nothing arrives; arriving data restarts the sequence."""
RETRIABLE_STATUSES = (408, 425, 429, 500, 502, 503, 504)
"""HTTP status codes of temporary errors."""
LOCK_SECONDS = 0.5
"""Seconds between checks of a file that another process downloads."""

Announce = Callable[[str], None]
"""Function that prints a line for the user."""


class Stopped(Exception):
    """Raised when another file failed or the user stopped the program; the partial file stays."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TransferWatch:
    """Progress callbacks of a transfer, and the event that stops it."""

    announce: Announce
    arrived: Callable[[int], None]
    """Function that takes the number of bytes that arrived; below 0: bytes to fetch again."""
    stop: threading.Event


def partial(target: Path) -> Path:
    """Return the path of a partial file, by a name that only Penstock uses. The hub's client gives
    each download another name and deletes it if the download fails; older clients append to
    `NAME.incomplete` without a check."""
    return target.with_name(f"{target.name}.penstock.incomplete")


def transfer(url: str, remote: WeightFile, target: Path, watch: TransferWatch) -> None:
    """Download a file to `target`, unless it exists. Raises what the hub's session raises, and
    EnvironmentFault for content with another checksum."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = partial(target)
    with _open_locked(remote.name, part, watch) as file:
        if target.exists():  # downloaded by another process in the meantime
            part.unlink(missing_ok=True)
            return
        for last in (False, True):
            _receive(url, remote, file, watch)
            if _digest(file) == remote.digest:
                break
            watch.arrived(-_size(file))
            file.truncate(0)
            if last:
                part.unlink(missing_ok=True)
                raise EnvironmentFault(
                    f"{remote.name} arrived twice with another checksum than the hub states",
                    hint="Try again later, or without the proxy or mirror in between",
                )
            watch.announce(f"{remote.name} arrived damaged; downloading it again")
        os.fsync(file.fileno())
        os.replace(part, target)


def is_transient(error: Exception) -> bool:
    """Return whether an error of the hub's session may disappear on retry."""
    from httpx2 import NetworkError, RemoteProtocolError, TimeoutException
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in RETRIABLE_STATUSES
    return isinstance(error, (NetworkError, RemoteProtocolError, TimeoutException))


def _open_locked(name: str, part: Path, watch: TransferWatch) -> FileIO:
    """Open the partial file, locked against other processes of this machine."""
    is_waiting = False
    while True:
        file = part.open("a+b", buffering=0)
        # On a file system without locks, the checksum reveals conflicts.
        if not try_lock(file.fileno()):
            if not is_waiting:
                watch.announce(f"{name} is being downloaded by another process: waiting for it")
            is_waiting = True
        elif _is_same_file(part, file):
            return file
        file.close()
        if watch.stop.wait(LOCK_SECONDS if is_waiting else 0):
            raise Stopped


def _is_same_file(part: Path, file: FileIO) -> bool:
    """Return whether the path still leads to the open file, which may have been moved meanwhile."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), part.stat())
    except FileNotFoundError:
        return False


def _receive(url: str, remote: WeightFile, file: FileIO, watch: TransferWatch) -> None:
    """Receive the whole file, reconnecting as often as the connection breaks."""
    waits = iter(WAITS)
    while (received := _size(file)) < remote.size:
        failure: Exception = ConnectionError("the server sent no more")
        try:
            _stream(url, file, received, remote.size, watch)
        except Exception as error:
            if not is_transient(error):
                raise
            failure = error
        if _size(file) >= remote.size:
            return
        if _size(file) > received:
            waits = iter(WAITS)
        seconds = next(waits, None)
        if seconds is None:
            raise failure
        share = f"{_size(file) / 1e6:.1f} of {remote.size / 1e6:.1f} MB"
        watch.announce(f"{remote.name} interrupted at {share}; resuming in {seconds:.0f} s")
        if watch.stop.wait(seconds):
            raise Stopped


def _stream(url: str, file: FileIO, start: int, size: int, watch: TransferWatch) -> None:
    """Append the server's data from byte `start` on, up to `size` bytes in all."""
    from huggingface_hub import constants
    from huggingface_hub.utils._headers import build_hf_headers
    from huggingface_hub.utils._http import get_session, hf_raise_for_status

    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with get_session().stream("GET", url, headers=headers, timeout=timeout) as response:
        hf_raise_for_status(response)
        if start and response.status_code != 206:  # the server ignored the range
            watch.arrived(-start)
            file.truncate(0)
        remaining = size - _size(file)
        for block in response.iter_bytes():
            block = block[:remaining]
            if file.write(block) != len(block):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            watch.arrived(len(block))
            remaining -= len(block)
            if watch.stop.is_set():
                raise Stopped
            if remaining <= 0:
                return


def _size(file: FileIO) -> int:
    return os.fstat(file.fileno()).st_size


def _digest(file: FileIO) -> str:
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()
