"""Gives servers access to the media files that they display."""

import asyncio
import os
import threading
import weakref
from functools import cached_property
from pathlib import Path

from artifacts.errors import PenstockError
from artifacts.index.rows import IndexRow
from artifacts.keys import ContentDigests, content_key
from artifacts.regular_files import open_regular
from artifacts.remote.ahead import run_detached
from artifacts.remote.media_cache import local_path
from artifacts.stamps import stamp_of
from artifacts.store import open_store
from flows.checkpoint.models import digests_in
from flows.options.model import default_store
from flows.serving.refusals import HttpRefusal


async def shown_file(place: str) -> Path | None:
    """Return the local path of a file, or None. A remote file is fetched on a thread that does not
    delay the server's shutdown."""
    try:
        path = await asyncio.wrap_future(run_detached(local_path, place))
    except (PenstockError, OSError, ValueError):
        return None
    # Opening a FIFO would block.
    return path if await asyncio.to_thread(path.is_file) else None


class IndexedMedium:
    """An open file with the content that was indexed, whatever happens to its path meanwhile."""

    def __init__(self, file: int) -> None:
        self.path = Path(f"/proc/self/fd/{file}")
        self.close = weakref.finalize(self, os.close, file)


class IndexedMedia:
    """Opens the media of an index, unless their content is another one than was indexed: a file may
    have been replaced, or be a link now."""

    def __init__(self, store: str) -> None:
        self._store = store
        self._reading: dict[str, threading.Lock] = {}

    @cached_property
    def _digests(self) -> ContentDigests:
        return digests_in(open_store(self._store or default_store()))

    async def opened(self, row: IndexRow) -> IndexedMedium:
        """Return the file of a row. Raises HttpRefusal. It is read only if its stamp is new; that
        does not delay the server's shutdown."""
        return await asyncio.wrap_future(run_detached(self._opened, row))

    def _opened(self, row: IndexRow) -> IndexedMedium:
        kind, why = "image" if row.time is None else "video", "has changed since it was indexed"
        try:
            path = os.path.realpath(local_path(row.path))
            with self._reading.setdefault(path, threading.Lock()):
                content = self._digests.content(Path(path))
            with open_regular(path) as file:
                is_same = stamp_of(file.fileno()) == content.stamp
                if is_same and content_key(content.digest, kind) == row.digest:
                    return IndexedMedium(os.dup(file.fileno()))
        except (PenstockError, OSError, ValueError):
            why = "cannot be read"
        raise HttpRefusal(404, f"the file of this hit {why}", "Run penstock index build again")
