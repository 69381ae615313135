"""Content digests of remote media: from the local cache, from the store, or by download.

Each digest that a machine computes is stored as the name of an empty object. Another machine that
collects the results of many downloads nothing.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path

from artifacts.errors import Interrupted, Unanswered
from artifacts.keys import Content
from artifacts.remote.addresses import is_web
from artifacts.remote.ahead import map_prefetched
from artifacts.remote.keeping import copy_of, digest_at, digest_noted, note_digest
from artifacts.store import Store
from artifacts.words import counted
from flows.media.media_files import MediaFile

FOLDER = "far"
"""Folder of a store in which digests of what lies far away are told."""
PARTS = 3
"""Parts of such a name: the folder, what names a version of a file, and its SHA-256."""
MOST_LISTED = 1000
"""Names that are listed at once, which is a request; of more, each is asked for by itself."""
ASKED_AT_ONCE = 32
FETCHED_AT_ONCE = 8
"""Media that are fetched at the same time, each by some ranges."""

ContentOrError = Content | OSError | Unanswered
"""What a file holds, or why it cannot be had."""
Progress = Callable[[int, int], None]
"""Function that hears how many bytes are here, and how many there are."""


def contents_of(
    files: Sequence[MediaFile],
    store: Store,
    progress: Progress | None = None,
    *,
    fetch: bool = True,
) -> Mapping[Path, ContentOrError]:
    """Return what each file holds, or why it cannot be had; what nobody knows yet is fetched, or
    else told as a content of its own. Raises EnvironmentFault where a bucket, or the disk of the
    copies, is in the way."""
    if not files:
        return {}
    wanted = {file.path: file for file in files}
    digests = FarDigests(store)
    asked = map_prefetched(digests.known, wanted.values(), min(ASKED_AT_ONCE, len(wanted)))
    known = dict(zip(wanted, asked, strict=True))
    missing = [wanted[path] for path, digest in known.items() if not digest and fetch]
    found: dict[Path, ContentOrError] = {
        path: Content(digest or path.parent.name, None)
        for path, digest in known.items()
        if digest or not fetch
    }
    coming = _Coming(sum(file.far.size for file in missing if file.far), progress)
    threads = min(FETCHED_AT_ONCE, len(missing))
    try:
        fetched = map_prefetched(lambda file: digests.learn(file, coming.hear), missing, threads)
        found |= zip((file.path for file in missing), fetched, strict=True)
    finally:
        coming.stopped.set()
    return found


def unfetched_note(files: Sequence[MediaFile]) -> list[str]:
    """Return what people should know of files that were not fetched."""
    count = sum(1 for file in files if file.far and not digest_noted(file.path))
    return [f"not fetched, so guessed at: {counted(count, 'file')}"] if count else []


class FarDigests:
    """Digests of remote media that this machine or the store has."""

    def __init__(self, store: Store) -> None:
        self._store = store
        names = list(islice(store.list(FOLDER), MOST_LISTED))
        parts = [name.split("/") for name in names]
        self._listed = {key: digest for _, key, digest in (p for p in parts if len(p) == PARTS)}
        self._is_all = len(names) < MOST_LISTED

    def known(self, file: MediaFile) -> str:
        """Return the digest of a file; empty where nobody knows it."""
        assert file.far is not None
        path = copy_of(file.far)
        digest = digest_noted(path)
        if not digest and (digest := self._told(file.far.key)):
            note_digest(path, digest)
        return digest

    def learn(self, file: MediaFile, hear: Callable[[int], None]) -> ContentOrError:
        """Fetch a file, and tell the store what it holds. Raises EnvironmentFault."""
        try:
            digest = digest_at(file.path, hear)
        except OSError as error:
            return error
        except Unanswered as error:
            if not is_web(file.place):
                raise
            return error
        if file.far is not None and file.far.lasts:
            self._store.put_if_absent(f"{FOLDER}/{file.far.key}/{digest}", [])
        return Content(digest, None)

    def _told(self, key: str) -> str:
        if self._is_all or key in self._listed:
            return self._listed.get(key, "")
        return next((n.rpartition("/")[2] for n in self._store.list(f"{FOLDER}/{key}")), "")


class _Coming:
    """The bytes being downloaded by several threads."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._total = total
        self._progress = progress
        self._here = 0
        self._lock = threading.Lock()
        self.stopped = threading.Event()
        """Set when nothing more is wanted."""

    def hear(self, size: int) -> None:
        """Count bytes that have come. Raises Interrupted when they are not wanted any more."""
        if self.stopped.is_set():
            raise Interrupted("the run was stopped while media were fetched")
        with self._lock:
            self._here += size
            # What is asked for twice, after a copy went again, is more than all.
            if self._progress is not None and self._here <= self._total:
                self._progress(self._here, self._total)
