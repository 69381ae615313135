"""Keeps thumbnails of media as records of the store, which `cache ls` lists and `cache gc`
deletes first."""

import contextlib
import threading
from pathlib import Path

from artifacts.errors import PenstockError
from artifacts.keys import digest_of
from artifacts.packs import Record, RecordSet
from artifacts.stamps import stamp_of
from artifacts.store import Store
from artifacts.store_format import prepare_store
from flows.results.thumbnails import QUALITY, SIDE, thumbnail
from flows.upkeep.cache import THUMBNAILS

VERSION = 4
TOGETHER = 32
"""Thumbnails that are stored as one pack. Fewer are stored when the page asks for no more."""
IDLE_SECONDS = 2.0


class Thumbnails:
    """Thumbnails of media, made once. A store that cannot be written keeps none."""

    def __init__(self, store: Store | None) -> None:
        """Keep them in a store; None: nowhere, for media that another person's folder names."""
        self._store = store
        self._records: RecordSet | None = None
        self._waiting: dict[str, bytes] = {}
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None

    def get(self, path: Path, time: float | None) -> bytes | None:
        """Return the JPEG of an image, or of a video at a time; None if none can be made."""
        if self._store is None:
            return thumbnail(path, time)
        try:
            key = digest_of([str(path), *stamp_of(path), str(time), SIDE, QUALITY])
        except OSError:
            return None
        with self._lock:
            if self._records is None:
                self._records = RecordSet(self._store, THUMBNAILS, digest_of([THUMBNAILS, VERSION]))
            if key in self._waiting:
                return self._waiting[key]
            records = self._records
        try:
            if key in records:
                return bytes(records.read(key).payload)
        except PenstockError:
            pass  # damaged: made again
        made = thumbnail(path, time)
        if made is not None:
            self._keep(key, made)
        return made

    def _keep(self, key: str, made: bytes) -> None:
        with self._lock:
            self._waiting[key] = made
            if self._timer is not None:
                self._timer.cancel()
            wait = 0.0 if len(self._waiting) >= TOGETHER else IDLE_SECONDS
            self._timer = threading.Timer(wait, self.flush)
            self._timer.daemon = True
            self._timer.start()

    def flush(self) -> None:
        """Store the thumbnails that were made since the last time."""
        with self._lock:
            made, records = dict(self._waiting), self._records
        if not made or records is None:
            return
        with contextlib.suppress(PenstockError, OSError):  # a full disk: they are made again
            prepare_store(records.store)
            records.publish([Record(key=key, payload=jpeg) for key, jpeg in made.items()])
        with self._lock:
            for key in made:
                self._waiting.pop(key, None)
