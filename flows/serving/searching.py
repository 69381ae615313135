"""Searches the current version of one index. Runs no model.

Another process may write the index at the same time: it is reopened when its manifest changes. An
index rebuilt with another model is not searched. A hit is identified by index version and row
position, so that details requested later belong to the row that was found.
"""

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artifacts.errors import EnvironmentFault, PenstockError, UsageError
from artifacts.index.manifest import BOOK, Maker
from artifacts.index.rows import IndexRow
from artifacts.index.search import Query, Searcher, Sort
from artifacts.index.snapshot import Snapshot, open_snapshot
from artifacts.index.where import Condition, matching
from artifacts.index.writing import refuse_other
from flows.options.search import SearchQuery
from flows.search.query import run_query, to_hit
from flows.serving.refusals import HttpRefusal, refusal_of

OPEN_VERSIONS = 2
"""Opened versions of an index whose hits can still be requested."""


class ServedIndex:
    """One index folder."""

    def __init__(self, folder: Path, maker: Maker) -> None:
        """Open the index for vectors from `maker`. Raises PenstockError."""
        self.folder = folder
        self.maker = maker
        self._stamp: tuple[int, ...] = ()
        self._opened: list[tuple[int, Searcher]] = []
        self._next = 0
        self._opening = threading.Lock()
        self._reopen()

    @property
    def rows(self) -> int:
        return self._opened[-1][1].snapshot.manifest.live_rows

    async def search(
        self,
        vector: NDArray[np.float32],
        sort: Sort,
        without: Sequence[NDArray[np.float32]],
        settings: SearchQuery,
    ) -> list[dict[str, Any]]:
        """Return the nearest hits. `settings` are those besides the query itself. Raises
        HttpRefusal."""
        await self.check()
        try:
            return await asyncio.to_thread(self._search, vector, sort, tuple(without), settings)
        except UsageError as error:
            raise refusal_of(error) from error
        except PenstockError as error:
            self._stamp = ()  # its files may have been overwritten: open them again
            raise refusal_of(error, 503) from error

    async def check(self) -> None:
        """Reopen the index if it has changed. Raises HttpRefusal if it is unusable."""
        try:
            await asyncio.to_thread(self._reopen)
        except PenstockError as error:
            raise refusal_of(error, 503) from error

    def _search(
        self,
        vector: NDArray[np.float32],
        sort: Sort,
        without: tuple[NDArray[np.float32], ...],
        settings: SearchQuery,
    ) -> list[dict[str, Any]]:
        number, searcher = self._opened[-1]
        snapshot: Snapshot = searcher.snapshot
        kept = matching(snapshot, Condition(settings.where)) if settings.where else None
        query = Query(vector=vector, sort=sort, without=without, kept=kept)
        found = run_query(searcher, query, settings)
        hits = (to_hit(snapshot, rank, moment) for rank, moment in enumerate(found, 1))
        return [
            {
                "rank": hit.rank,
                "score": hit.score,
                "id": f"{number}-{moment.position}",
                "kind": "image" if hit.at is None else "video",
                "media_path": hit.media_path,
                "time": hit.time,
                "at": hit.at,
                "box": hit.box,
                "copies": hit.copies,
            }
            for hit, moment in zip(hits, found, strict=True)
        ]

    def row(self, name: str) -> IndexRow:
        """Return the row of a hit. Raises HttpRefusal."""
        number, _, position = name.partition("-")
        if number.isdecimal() and position.isdecimal() and len(name) < 32:
            for known, searcher in self._opened:
                if known == int(number) and int(position) < searcher.snapshot.rows:
                    try:
                        return searcher.snapshot.read(np.array([int(position)]))[0]
                    except PenstockError as error:
                        raise refusal_of(error, 503) from error
        raise HttpRefusal(404, "no such hit", "Search again: the index has changed since")

    def _reopen(self) -> None:
        """Reopen the index if it has changed. Raises PenstockError, also for an index of another
        model. On failure the version opened before stays."""
        with self._opening:
            try:
                found = (self.folder / BOOK).stat()
            except OSError as error:
                raise EnvironmentFault(
                    f"index {self.folder} cannot be read ({error.strerror})",
                    hint="Restore it, or build it again",
                ) from error
            stamp = (found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_size)
            if stamp == self._stamp:
                return
            snapshot = open_snapshot(self.folder)
            refuse_other(self.folder, snapshot.manifest.maker, self.maker)
            self._opened = [*self._opened, (self._next, Searcher(snapshot))][-OPEN_VERSIONS:]
            self._next += 1
            self._stamp = stamp
