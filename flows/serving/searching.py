"""Searches the current version of one index. Runs no model.

Another process may write the index at the same time: it is reopened when its manifest changes. An
index rebuilt with another model is not searched. A hit is identified by index version and row
position, so that details requested later belong to the row that was found.
"""

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import dataclass
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
from flows.search.maker import unrecorded
from flows.search.query import found_by, hit_of
from flows.serving.refusals import HttpRefusal, refusal_of

GENERATIONS = 2
"""Openings of an index whose hits are known still."""
MOST_HITS = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """The filters of a search request besides its vector."""

    top: int
    where: str
    moments: bool

    def asked(self) -> SearchQuery:
        """Return it as a search has it. Raises Refused."""
        if not 1 <= self.top <= MOST_HITS:
            raise HttpRefusal(422, f"top is {self.top}", f"Give 1 to {MOST_HITS}")
        return SearchQuery(what="-", top=self.top, where=self.where, moments=self.moments)


class ServedIndex:
    """One index folder."""

    def __init__(self, folder: Path, maker: Maker) -> None:
        """Open it, for vectors that `maker` makes. Raises PenstockError."""
        self.folder = folder
        self._maker = maker
        self._stamp: tuple[int, ...] = ()
        self._opened: list[tuple[int, Searcher]] = []
        self._next = 0
        self._looking = threading.Lock()
        self._look()

    @property
    def rows(self) -> int:
        return self._opened[-1][1].snapshot.manifest.live_rows

    @property
    def unrecorded(self) -> str:
        """Return the warning about texts that are searched for; empty where there is none."""
        return unrecorded(Path(self.folder.name), self._opened[-1][1].snapshot.manifest.maker)

    async def search(
        self,
        vector: NDArray[np.float32],
        sort: Sort,
        without: Sequence[NDArray[np.float32]],
        wanted: Wanted,
    ) -> list[dict[str, Any]]:
        """Return what is nearest. Raises Refused."""
        asked = wanted.asked()
        await self.check()
        try:
            return await asyncio.to_thread(self._search, vector, sort, tuple(without), asked)
        except UsageError as error:
            raise refusal_of(error) from error
        except PenstockError as error:
            raise refusal_of(error, 503) from error

    async def check(self) -> None:
        """Open the index anew if it was written. Raises Refused where it cannot be searched."""
        try:
            await asyncio.to_thread(self._look)
        except PenstockError as error:
            raise refusal_of(error, 503) from error

    def _search(
        self,
        vector: NDArray[np.float32],
        sort: Sort,
        without: tuple[NDArray[np.float32], ...],
        asked: SearchQuery,
    ) -> list[dict[str, Any]]:
        number, searcher = self._opened[-1]
        snapshot: Snapshot = searcher.snapshot
        kept = matching(snapshot, Condition(asked.where)) if asked.where else None
        query = Query(vector=vector, sort=sort, without=without, kept=kept)
        found = found_by(searcher, query, asked)
        return [
            {
                "rank": rank,
                "score": round(moment.score, 6),
                "id": f"{number}-{moment.position}",
                "kind": "image" if moment.row.time is None else "video",
                **_told(snapshot, rank, moment),
            }
            for rank, moment in enumerate(found, 1)
        ]

    def row(self, name: str) -> IndexRow:
        """Return the row of a hit. Raises Refused."""
        number, _, position = name.partition("-")
        if number.isdecimal() and position.isdecimal() and len(name) < 32:
            for known, searcher in self._opened:
                if known == int(number) and int(position) < searcher.snapshot.rows:
                    try:
                        return searcher.snapshot.read(np.array([int(position)]))[0]
                    except PenstockError as error:
                        raise refusal_of(error, 503) from error
        raise HttpRefusal(404, "there is no such hit", "Search again: the index has changed since")

    def _look(self) -> None:
        """Open the index anew if it was written. Raises PenstockError, also for an index of other
        vectors: what was opened before then stays."""
        with self._looking:
            try:
                found = (self.folder / BOOK).stat()
            except OSError as error:
                raise EnvironmentFault(
                    f"the index {self.folder} cannot be read ({error.strerror})",
                    hint="Bring it back, or build it anew",
                ) from error
            stamp = (found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_size)
            if stamp == self._stamp:
                return
            snapshot = open_snapshot(self.folder)
            refuse_other(self.folder, snapshot.manifest.maker, self._maker)
            self._opened = [*self._opened, (self._next, Searcher(snapshot))][-GENERATIONS:]
            self._next += 1
            self._stamp = stamp


def _told(snapshot: Snapshot, rank: int, moment: Any) -> dict[str, Any]:
    hit = hit_of(snapshot, rank, moment)
    return {
        "media_path": hit.media_path,
        "time": hit.time,
        "at": hit.at,
        "box": hit.box,
        "copies": hit.copies,
    }
