"""Learns what media far away hold: from this machine, from the store, or by fetching them; knows no
stage.

What a machine has learnt lies in the store as the name of an empty object, so another one that
gathers what many machines have made fetches nothing.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from artifacts.errors import Unanswered
from artifacts.keys import Content
from artifacts.remote.addresses import FarFile, is_web
from artifacts.remote.keeping import digest_at, digest_noted, note_digest
from artifacts.store import Store
from flows.job.media_files import MediaFile

FOLDER = "far"
"""Folder of a store in which digests of what lies far away are told."""
MOST_LISTED = 1000
"""Names that are listed at once, which is a request; of more, each is asked for by itself."""
AT_ONCE = 16
"""Media that are asked about, or fetched, at the same time."""


class FarDigests:
    """Digests of media far away, as a store tells them."""

    def __init__(self, store: Store) -> None:
        self._store = store
        names = list(islice(store.list(FOLDER), MOST_LISTED))
        self._listed = dict(name.split("/")[1:3] for name in names)
        self._is_all = len(names) < MOST_LISTED

    def of(self, file: MediaFile) -> Content | OSError | Unanswered:
        """Return what a file holds, or why it cannot be had. Raises EnvironmentFault where a
        bucket, or the disk of the copies, is in the way."""
        assert file.far is not None
        try:
            digest = digest_noted(file.path)
            if not digest and (digest := self._told(file.far)):
                note_digest(file.path, digest)
            return Content(digest or self._learnt(file, file.far), None)
        except OSError as error:
            return error
        except Unanswered as error:
            if not is_web(file.place):
                raise
            return error

    def _told(self, far: FarFile) -> str:
        """Return what the store tells; empty where it tells nothing."""
        key = far.key
        if self._is_all or key in self._listed:
            return self._listed.get(key, "")
        return next((n.rpartition("/")[2] for n in self._store.list(f"{FOLDER}/{key}")), "")

    def _learnt(self, file: MediaFile, far: FarFile) -> str:
        digest = digest_at(file.path)
        if far.lasts:
            self._store.put_if_absent(f"{FOLDER}/{far.key}/{digest}", [])
        return digest


def contents_of(
    files: Sequence[MediaFile], store: Store
) -> Iterator[Content | OSError | Unanswered]:
    """Yield what each file holds, or why it cannot be had. Raises EnvironmentFault."""
    if not files:
        return
    digests = FarDigests(store)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        try:
            yield from pool.map(digests.of, files)
        finally:
            pool.shutdown(cancel_futures=True)
