"""Downloads the weight files that a checkpoint lacks into the hub's cache, several at a time."""

import shutil
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from artifacts.errors import EnvironmentFault
from stages.models.hub.checkpoint import Checkpoint, WeightFile
from stages.models.hub.errors import (
    MORE_ROOM,
    cache_folder,
    hub_errors,
    refuse_offline,
    shown,
    size_of,
)
from stages.models.hub.transfer import Announce, TransferWatch, partial, transfer

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
    local_bytes = sum(_local_bytes(checkpoint, file) for file in missing)
    total = sum(file.size for file in missing)
    check_space(checkpoint.name, total - local_bytes)
    if total > local_bytes and announce is not None:
        before = f", {size_of(local_bytes)} of them already downloaded" if local_bytes else ""
        size, folder = size_of(total) + before, shown(cache_folder())
        announce(f"downloading {what}{checkpoint.name}, {size}, into {folder} (once)")
    with hub_errors(checkpoint.name, checkpoint.commit, begun=True):
        lock = threading.Lock()

        def arrived(count: int) -> None:
            nonlocal local_bytes
            with lock:
                local_bytes += count
                if progress is not None:
                    progress(local_bytes, total)

        notify = announce or (lambda text: None)
        watch = TransferWatch(announce=notify, arrived=arrived, stop=threading.Event())
        _fetch_all(checkpoint, missing, watch)


def check_space(name: str, needed: int) -> None:
    """Refuse a download that does not fit on the disk. Raises EnvironmentFault."""
    folder = cache_folder()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
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


def _local_bytes(checkpoint: Checkpoint, file: WeightFile) -> int:
    """Return the bytes of a file that are already local."""
    blob = _blob(checkpoint, file)
    local = next((path for path in (blob, partial(blob)) if path.exists()), None)
    return 0 if local is None else min(local.stat().st_size, file.size)


def _blob(checkpoint: Checkpoint, file: WeightFile) -> Path:
    return checkpoint.folder.parents[1] / "blobs" / file.digest
