"""Downloads weight files into the hub's cache, several at a time.

The download of one large file resumes where it stopped, waits out a broken connection, and verifies
the checksum.

Errors of a model hub or the network become plain messages here.
"""

import contextlib
import errno
import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from artifacts.disk.locks import try_lock
from artifacts.errors import EnvironmentFault, PenstockError, Unanswered, UsageError
from stages.models.hub.checkpoint import Checkpoint, WeightFile

OF_THE_DISK = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EEXIST,
)
"""Errors of writing the cache; all other download errors come from the network."""
PICKLES = (".bin", ".pt", ".pth")
"""File name endings of weights that can run code when they are read in the usual way."""
MORE_ROOM = "Free some space, or set HF_HOME to a folder on a larger disk"


@contextlib.contextmanager
def hub_errors(name: str, revision: str | None, begun: bool = False) -> Iterator[None]:
    """Turn errors of the hub's client about a model into a PenstockError. `begun`: part of the
    model is already local."""
    from httpx2 import HTTPError, InvalidURL
    from huggingface_hub.errors import RevisionResolutionError, SafetensorsParsingError

    try:
        yield
    except SafetensorsParsingError as error:
        raise UsageError(
            f"{name} holds an invalid safetensors file: {' '.join(str(error).split())[:160]}",
            hint="Choose another revision, or a checkpoint saved by transformers",
        ) from error
    # The hub's storage of large files reports its errors as RuntimeError.
    except (
        OSError,
        ValueError,
        RuntimeError,
        HTTPError,
        InvalidURL,
        RevisionResolutionError,
    ) as error:
        raise _readable_fault(name, revision, error, begun) from error


def cache_folder() -> Path:
    """Return the folder where the hub's client keeps its downloads."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser().resolve()


def size_of(count: int) -> str:
    """Format a number of bytes as `3.4 MB` or `1.2 GB`."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{max(count / 1e6, 0.1):.1f} MB"


def shown(folder: Path) -> str:
    """Format a folder's path, with `~` for the home folder."""
    home = os.path.expanduser("~")  # itself for a user without a home
    return f"~/{folder.relative_to(home)}" if folder.is_relative_to(home) else str(folder)


def refuse_offline(checkpoint: Checkpoint, missing: Sequence[WeightFile]) -> None:
    """Refuse a download if the user keeps the hub's client offline. Raises Unanswered, which
    names what is missing and its size."""
    from huggingface_hub import constants

    if not constants.is_offline_mode():
        return
    more = f" and {len(missing) - 1} more files" if len(missing) > 1 else ""
    size = size_of(sum(file.size for file in missing))
    raise Unanswered(
        f"{missing[0].name}{more} of {checkpoint.name}, {size}, are not in {shown(cache_folder())} "
        f"and {_offline_switch()} is set",
        hint=f"Unset {_offline_switch()} and run the same command again, or try --model demo",
    )


def not_a_folder(path: Path) -> UsageError:
    hint = "Give the folder that holds it, with its config.json"
    if path.suffix in PICKLES:
        hint = to_convert(str(path)).replace("run", "Run", 1)
    return UsageError(f"{path} is a file, but a model is a folder", hint=hint)


def to_convert(source: str) -> str:
    """Return the hint for converting pickles; the user chooses the folder."""
    return f"run: penstock convert {source} DST, and give DST as the model"


def _readable_fault(
    name: str, revision: str | None, error: Exception, begun: bool
) -> PenstockError:
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
        RevisionResolutionError,
    )

    # The client's error about a missing cache entry hides the cause.
    if isinstance(error, (LocalEntryNotFoundError, RevisionResolutionError)):
        cause = error.__cause__
        error = cause if isinstance(cause, Exception) else error
    if isinstance(error, GatedRepoError):
        return UsageError(
            f"{name} may only be downloaded by users who accepted its terms",
            hint=f"Accept them at https://huggingface.co/{name}, then run: hf auth login",
        )
    if isinstance(error, (RepositoryNotFoundError, RevisionNotFoundError)):
        requested = f"{name} at revision {revision}" if revision else name
        return UsageError(
            f"the hub has no model {requested}",
            hint="Check the name, or run: hf auth login, if the model is private",
        )
    if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403):
        return UsageError(
            f"the hub denies access to {name}",
            hint="Run: hf auth login, with a token that may read it, or unset HF_TOKEN",
        )
    if isinstance(error, OSError) and error.errno in OF_THE_DISK:
        return EnvironmentFault(
            f"{name} cannot be written into {shown(cache_folder())} ({error.strerror})",
            hint=MORE_ROOM,
        )
    return _unreachable(name, error, begun)


def _unreachable(name: str, error: Exception, begun: bool) -> Unanswered:
    """Return the error for files that are missing and cannot be downloaded now."""
    from huggingface_hub import constants
    from huggingface_hub.errors import FileMetadataError, HfHubHTTPError

    reason = f"{constants.ENDPOINT} cannot be reached"
    if constants.is_offline_mode():
        reason = f"{_offline_switch()} is set"
    elif isinstance(error, HfHubHTTPError):
        reason = f"{constants.ENDPOINT} answers with status {error.response.status_code}"
    elif isinstance(error, (ValueError, FileMetadataError)):
        reason = f"{constants.ENDPOINT} does not answer as a model hub"
    elif isinstance(error, (OSError, RuntimeError)):
        reason = "its download was interrupted"
    if begun:
        return Unanswered(
            f"the rest of {name} is missing, and {reason}",
            hint="Connect and try again: it resumes the download",
        )
    connect = f"Unset {_offline_switch()}" if constants.is_offline_mode() else "Connect"
    return Unanswered(
        f"{name} was not downloaded before, and {reason}",
        hint=f"{connect} and try again, give the folder of a copy as --model, or "
        "try the program with --model demo. docs/cards.md plans common models for GPUs",
    )


def _offline_switch() -> str:
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return next((name for name in names if os.environ.get(name)), names[0])


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
    waiting = False
    while True:
        file = part.open("a+b", buffering=0)
        # On a file system without locks, the checksum reveals conflicts.
        if not try_lock(file.fileno()):
            if not waiting:
                watch.announce(f"{name} is being downloaded by another process: waiting for it")
            waiting = True
        elif _is_same_file(part, file):
            return file
        file.close()
        if watch.stop.wait(LOCK_SECONDS if waiting else 0):
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
    while (have := _size(file)) < remote.size:
        failure: Exception = ConnectionError("the server sent no more")
        try:
            _stream(url, file, have, remote.size, watch)
        except Exception as error:
            if not is_transient(error):
                raise
            failure = error
        if _size(file) >= remote.size:
            return
        if _size(file) > have:
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
        left = size - _size(file)
        for block in response.iter_bytes():
            block = block[:left]
            if file.write(block) != len(block):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            watch.arrived(len(block))
            left -= len(block)
            if watch.stop.is_set():
                raise Stopped
            if left <= 0:
                return


def _size(file: FileIO) -> int:
    return os.fstat(file.fileno()).st_size


def _digest(file: FileIO) -> str:
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()


AT_ONCE = 4
"""Files fetched at a time."""

Progress = Callable[[int, int], None]
"""Function that takes the bytes that have arrived and the total."""


def fetch(
    checkpoint: Checkpoint,
    names: Iterable[str] | None = None,
    *,
    what: str = "",
    announce: Announce | None = None,
    progress: Progress | None = None,
) -> None:
    """Download the missing weight files of a checkpoint: those in `names`, or all.

    `what` names them for the user, such as `the vision half of`. Raises UsageError for files that
    the hub does not provide. Raises EnvironmentFault if the hub is unreachable or the disk is full,
    or if the content does not match the hub's checksum.
    """
    missing = checkpoint.missing(names)
    if not missing:
        return
    refuse_offline(checkpoint, missing)
    here = sum(_here(checkpoint, file) for file in missing)
    total = sum(file.size for file in missing)
    check_space(checkpoint.name, total - here)
    if total > here and announce is not None:
        size = size_of(total) + (f", {size_of(here)} of them already downloaded" if here else "")
        folder = shown(cache_folder())
        announce(f"downloading {what}{checkpoint.name}, {size}, into {folder} (once)")
    with hub_errors(checkpoint.name, checkpoint.commit, begun=True):
        lock = threading.Lock()

        def arrived(count: int) -> None:
            nonlocal here
            with lock:
                here += count
                if progress is not None:
                    progress(here, total)

        notify = announce or (lambda text: None)
        watch = TransferWatch(announce=notify, arrived=arrived, stop=threading.Event())
        _fetch_all(checkpoint, missing, watch)


def check_space(name: str, needed: int) -> None:
    """Refuse a download that does not fit on the disk. Raises EnvironmentFault."""
    folder = cache_folder()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise EnvironmentFault(
            f"{name} needs {size_of(needed)} in {shown(folder)}, where {size_of(free)} are free",
            hint=MORE_ROOM,
        )


def _fetch_all(checkpoint: Checkpoint, files: Sequence[WeightFile], watch: TransferWatch) -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        running = [pool.submit(_fetch_one, checkpoint, file, watch) for file in files]
        try:
            for done in as_completed(running):
                done.result()
        except BaseException:
            watch.stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _fetch_one(checkpoint: Checkpoint, file: WeightFile, watch: TransferWatch) -> None:
    from huggingface_hub import hf_hub_download, hf_hub_url

    url = hf_hub_url(checkpoint.name, file.name, revision=checkpoint.commit)
    transfer(url, file, _blob(checkpoint, file), watch)
    # The content is already in place, so this only links it.
    hf_hub_download(checkpoint.name, file.name, revision=checkpoint.commit)


def _here(checkpoint: Checkpoint, file: WeightFile) -> int:
    """Return the bytes of a file that are already local."""
    blob = _blob(checkpoint, file)
    local = next((path for path in (blob, partial(blob)) if path.exists()), None)
    return 0 if local is None else min(local.stat().st_size, file.size)


def _blob(checkpoint: Checkpoint, file: WeightFile) -> Path:
    return checkpoint.folder.parents[1] / "blobs" / file.digest
