"""Content digests of remote media: from the store, or by download.

Each digest that a machine computes is stored as the name of an empty object. Another machine that
collects the results of many downloads nothing.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

from artifacts.errors import Interrupted, Unanswered
from artifacts.records.keys import Content
from artifacts.records.store import Store
from artifacts.remote.addresses import is_web
from artifacts.remote.ahead import map_prefetched
from artifacts.remote.media_cache import copy_of, digest_at
from flows.core.media.media_file import MediaFile

FOLDER = "far"
"""Folder of a store that holds digests of remote files."""
PARTS = 3
"""Number of path parts in such a name: the folder, the key of a file version, and its SHA-256."""
MAX_LISTED = 1000
"""Number of names listed in one request. If there are more, each file is looked up separately."""
LOOKUPS_AT_ONCE = 32
FETCHED_AT_ONCE = 8
"""Number of media downloaded at the same time."""

ContentOrError = Content | OSError | Unanswered
"""Content of a file, or why it cannot be read."""
Progress = Callable[[int, int], None]
"""Called with the bytes downloaded so far, and the total."""


def contents_of(
    files: Sequence[MediaFile],
    store: Store,
    progress: Progress | None = None,
    *,
    fetch: bool = True,
) -> Mapping[Path, ContentOrError]:
    """Return the content of each file, or why it cannot be read. Files without a known digest are
    downloaded; without `fetch`, each counts as a content of its own. Raises EnvironmentFault if a
    bucket or the disk of the copies fails."""
    if not files:
        return {}
    by_path = {file.path: file for file in files}
    digests = RemoteDigests(store)
    threads = min(LOOKUPS_AT_ONCE, len(by_path))
    found_digests = map_prefetched(digests.known, [*by_path.values()], threads)
    known = dict(zip(by_path, found_digests, strict=True))
    missing = [by_path[path] for path, digest in known.items() if not digest and fetch]
    contents: dict[Path, ContentOrError] = {
        path: Content(digest or path.parent.name, None)
        for path, digest in known.items()
        if digest or not fetch
    }
    total, downloaded = sum(file.remote.size for file in missing if file.remote), 0
    lock, stopped = threading.Lock(), threading.Event()

    def add_bytes(size: int) -> None:
        """Count what several threads download. Raises Interrupted if it is no longer needed."""
        nonlocal downloaded
        if stopped.is_set():
            raise Interrupted("the run was stopped while media were downloaded")
        with lock:
            downloaded += size
            # A file whose copy vanished is downloaded twice, which exceeds the total.
            if progress is not None and downloaded <= total:
                progress(downloaded, total)

    threads = min(FETCHED_AT_ONCE, len(missing))
    try:
        fetch_one = partial(digests.fetch_digest, add_bytes=add_bytes)
        contents |= zip(
            (file.path for file in missing),
            map_prefetched(fetch_one, missing, threads),
            strict=True,
        )
    finally:
        stopped.set()
    return contents


class RemoteDigests:
    """Digests of remote media that the store has."""

    def __init__(self, store: Store) -> None:
        self._store = store
        names = list(islice(store.list(FOLDER), MAX_LISTED))
        parts = [name.split("/") for name in names]
        self._listed = {key: digest for _, key, digest in (p for p in parts if len(p) == PARTS)}
        self._is_all = len(names) < MAX_LISTED

    def known(self, file: MediaFile) -> str:
        """Return the digest of a file, or an empty string if it is unknown. Note what its path is a
        copy of."""
        assert file.remote is not None
        copy_of(file.remote)
        key = file.remote.key
        if self._is_all or key in self._listed:
            return self._listed.get(key, "")
        return next((n.rpartition("/")[2] for n in self._store.list(f"{FOLDER}/{key}")), "")

    def fetch_digest(self, file: MediaFile, add_bytes: Callable[[int], None]) -> ContentOrError:
        """Download a file, and store its digest. Raises EnvironmentFault."""
        try:
            digest = digest_at(file.path, add_bytes)
        except OSError as error:
            return error
        except Unanswered as error:
            if not is_web(file.place):
                raise
            return error
        if file.remote is not None and file.remote.lasts:
            self._store.put_if_absent(f"{FOLDER}/{file.remote.key}/{digest}", [])
        return Content(digest, None)
