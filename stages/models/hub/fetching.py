"""Downloads weight files into the hub's cache, several at a time."""

import shutil
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from artifacts.errors import EnvironmentFault
from stages.models.hub.checkpoint import Checkpoint, WeightFile
from stages.models.hub.hub_errors import (
    MORE_ROOM,
    cache_folder,
    hub_errors,
    refuse_offline,
    shown,
    size_of,
)
from stages.models.hub.transfer import Announce, Remote, TransferWatch, partial, transfer

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
        _fetch_all(
            checkpoint, missing, announce or (lambda text: None), _Counter(here, total, progress)
        )


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


class _Counter:
    """Adds up the bytes that arrive on all connections."""

    def __init__(self, here: int, total: int, progress: Progress | None) -> None:
        self._here, self._total, self._progress = here, total, progress
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        with self._lock:
            self._here += count
            if self._progress is not None:
                self._progress(self._here, self._total)


def _fetch_all(
    checkpoint: Checkpoint, files: Sequence[WeightFile], announce: Announce, counter: _Counter
) -> None:
    watch = TransferWatch(announce=announce, arrived=counter.add, stop=threading.Event())
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
    remote = Remote(name=file.name, url=url, size=file.size, digest=file.digest)
    transfer(remote, _blob(checkpoint, file), watch)
    # The content is already in place, so this only links it.
    hf_hub_download(checkpoint.name, file.name, revision=checkpoint.commit)


def _here(checkpoint: Checkpoint, file: WeightFile) -> int:
    """Return the bytes of a file that are already local."""
    blob = _blob(checkpoint, file)
    found = next((path for path in (blob, partial(blob)) if path.exists()), None)
    return 0 if found is None else min(found.stat().st_size, file.size)


def _blob(checkpoint: Checkpoint, file: WeightFile) -> Path:
    return checkpoint.folder.parents[1] / "blobs" / file.digest
