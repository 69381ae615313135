"""Searches the current version of one index. Runs no model.

Another process may write the index at the same time: it is reopened when its manifest changes. An
index rebuilt with another model is not searched. A hit is identified by index version and row
position, so that details requested later belong to the row that was found.
"""

import asyncio
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artifacts.errors import EnvironmentFault, PenstockError, UsageError
from artifacts.index.manifest import BOOK, Maker
from artifacts.index.rows import ROW, IndexRow
from artifacts.index.search import Query, Searcher, Sort
from artifacts.index.snapshot import Snapshot, open_snapshot
from artifacts.index.where import Condition, matching
from artifacts.index.writing import refuse_other
from artifacts.stamps import Stamp, stamp_of
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
        self._stamp: tuple[int | Stamp | None, ...] = ()
        self._opened: list[tuple[int, Searcher]] = []
        self._next = 0
        self._failed: tuple[Any, ...] | None = None
        """What was searched for when the last search failed; None: it did not."""
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
        given = (vector, sort, tuple(without), settings)
        try:
            hits = await asyncio.to_thread(self._search, *given)
        except UsageError as error:
            raise refusal_of(error) from error
        except PenstockError as error:
            self._failed = given
            raise refusal_of(error, 503) from error
        self._failed = None
        return hits

    async def check_searches(self) -> None:
        """Raise HttpRefusal if searches are refused. One that failed is tried again."""
        await self.check()
        if (failed := self._failed) is not None:
            await self.search(*failed)

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

    async def row(self, name: str) -> IndexRow:
        """Return the row of a hit, which the newest version must still have. Raises HttpRefusal."""
        await self.check()
        try:
            return await asyncio.to_thread(self._row, name)
        except PenstockError as error:
            raise refusal_of(error, 503) from error

    def _row(self, name: str) -> IndexRow:
        number, _, position = name.partition("-")
        if number.isdecimal() and position.isdecimal() and len(name) < 32:
            newest = self._opened[-1][1].snapshot
            for known, searcher in self._opened:
                if known == int(number) and int(position) < searcher.snapshot.rows:
                    at = np.array([int(position)])
                    (identity,) = searcher.snapshot.identities_at(ROW, at)
                    if len(newest.positions_of(ROW, int(identity))):
                        return searcher.snapshot.read(at)[0]
        raise HttpRefusal(404, "no such hit", "Search again: the index has changed since")

    def _reopen(self) -> None:
        """Reopen the index if one of its files has changed. Raises PenstockError, also for an index
        of another model. On failure the version opened before stays."""
        with self._opening:
            try:
                found = (self.folder / BOOK).stat()
            except OSError as error:
                raise EnvironmentFault(
                    f"index {self.folder} cannot be read ({error.strerror})",
                    hint="Restore it, or build it again",
                ) from error
            stamp = (found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_size)
            if self._stamp == (*stamp, *self._stamps()):
                return
            snapshot = open_snapshot(self.folder)
            refuse_other(self.folder, snapshot.manifest.maker, self.maker)
            self._opened = [*self._opened, (self._next, Searcher(snapshot))][-OPEN_VERSIONS:]
            self._next += 1
            self._stamp = (*stamp, *self._stamps())

    def _stamps(self) -> Iterator[Stamp | None]:
        """Yield the stamp of each file of the newest version; None: it cannot be read."""
        for _, searcher in self._opened[-1:]:
            for file in searcher.snapshot.manifest.files():
                try:
                    yield stamp_of(self.folder / file.name)
                except OSError:
                    yield None
