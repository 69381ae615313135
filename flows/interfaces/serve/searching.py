"""Searches the current version of one index. Runs no model.

Another process may write the index at the same time: it is reopened when its manifest changes. An
index rebuilt with another model is not searched. The id of a hit is the identity of its row, so
that details requested later belong to the row that was found, whatever was added, compacted or
started again meanwhile.
"""

import asyncio
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from artifacts.disk.json_shapes import Json
from artifacts.disk.stamps import Stamp, model_stamp_of, stamp_of
from artifacts.errors import EnvironmentFault, PenstockError, UsageError
from artifacts.index.manifest import BOOK, Maker
from artifacts.index.search import Query, Searcher, Sort
from artifacts.index.shard import MEDIUM, ROW, IndexRow, PixelBox, medium_of
from artifacts.index.snapshot import Snapshot, open_snapshot
from artifacts.index.where import INDEX, Condition, matching
from artifacts.index.writing import refuse_other
from flows.commands.search.both import DEEPER, find_texts, fuse, with_captions
from flows.commands.search.query import Hit, run_query, to_hit
from flows.commands.search.run_texts import RunTexts
from flows.core.options.store import default_store
from flows.core.options.vectors import SearchQuery
from flows.interfaces.serve.refusals import HttpRefusal, refusal_of, unavailable

Search = tuple[NDArray[np.float32] | None, Sort, tuple[NDArray[np.float32], ...], SearchQuery]
"""Arguments of a search."""
FIELD = replace(INDEX, option="where")
"""What a condition is about, as a request names it."""
HIT = re.compile("[0-9a-f]{16}")
"""The one spelling of an id."""

Place = tuple[str, float | None, PixelBox | None]
"""Path, time and tile of a hit."""


class ServedIndex:
    """One index folder."""

    def __init__(
        self, folder: Path, maker: Maker, captions: Path | None = None, store: str = ""
    ) -> None:
        """Open the index for vectors from `maker`, and the `captions` of a run, whose words are
        indexed in the store. Raises PenstockError."""
        self.folder = folder
        self._run, self._store = captions, store or default_store()
        self._texts = self._opened_texts(None)
        self.maker = maker
        self._stamp: tuple[int | Stamp | None, ...] = ()
        self._searcher: Searcher | None = None
        """The version that is searched."""
        self._failed: Search | None = None
        """What was searched for when the last search failed; None: it did not."""
        self._opening = threading.Lock()
        self._reopen()

    @property
    def rows(self) -> int:
        return self._snapshot.manifest.live_rows

    @property
    def _snapshot(self) -> Snapshot:
        assert self._searcher is not None
        return self._searcher.snapshot

    async def search(
        self,
        vector: NDArray[np.float32] | None,
        sort: Sort,
        without: Sequence[NDArray[np.float32]],
        settings: SearchQuery,
    ) -> list[dict[str, Json]]:
        """Return the best hits. Without a vector, words are searched alone. Raises HttpRefusal."""
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
        if not self.rows:
            raise unavailable("the index has no rows", "Ask again when it is built")

    def within(self, wanted: str | None) -> str:
        """Return what a text is searched in. Raises HttpRefusal for captions if there are none."""
        if wanted in ("captions", "both") and self._run is None:
            raise HttpRefusal(404, "this server has no captions", "Start it with --captions OUT")
        return wanted or ("vectors" if self._run is None else "both")

    def _search(
        self,
        vector: NDArray[np.float32] | None,
        sort: Sort,
        without: tuple[NDArray[np.float32], ...],
        settings: SearchQuery,
    ) -> list[dict[str, Json]]:
        searcher = self._searcher
        assert searcher is not None
        snapshot: Snapshot = searcher.snapshot
        within = "vectors" if sort == "pictures" else self.within(settings.within)
        wider = replace(settings, top=DEEPER * settings.top) if within == "both" else settings
        hits, ids = list[Hit](), dict[Place, int]()
        if vector is not None:
            kept = matching(snapshot, Condition(settings.where, FIELD)) if settings.where else None
            query = Query(vector=vector, sort=sort, without=without, kept=kept)
            ranked = run_query(searcher, query, wider)
            hits = [to_hit(snapshot, rank, moment) for rank, moment in enumerate(ranked, 1)]
            positions = np.array([moment.position for moment in ranked], np.int64)
            rows = snapshot.identities_at(ROW, positions).tolist()
            ids = {place_of(hit): row for hit, row in zip(hits, rows, strict=True)}
        if self._run is not None:
            texts = self._texts = self._opened_texts(self._texts)
            assert texts is not None
            if within != "vectors":
                hits = fuse(hits, find_texts(texts, wider, within, FIELD), settings.top)
            hits = with_captions(hits, texts)
        names = [ids.get(place_of(hit)) or _nearest_row(snapshot, hit) for hit in hits]
        return [
            {
                "rank": hit.rank,
                "score": hit.score,
                "id": name and f"{name:016x}",
                "kind": "image" if hit.at is None else "video",
                "media_path": hit.media_path,
                "time": hit.time,
                "at": hit.at,
                "box": hit.box,
                "copies": hit.copies,
                "caption": hit.caption,
                "caption_time": hit.caption_time,
            }
            for hit, name in zip(hits, names, strict=True)
        ]

    def _opened_texts(self, before: RunTexts | None) -> RunTexts | None:
        """Return the texts of the run as they are now. Raises PenstockError."""
        if self._run is None or (before is not None and before.is_current()):
            return before
        return RunTexts(self._run, self._store, lambda _: None)

    async def row(self, name: str) -> IndexRow:
        """Return the row of a hit, which the index must still have. Raises HttpRefusal."""
        await self.check()
        try:
            return await asyncio.to_thread(self._row, name)
        except PenstockError as error:
            raise refusal_of(error, 503) from error

    def _row(self, name: str) -> IndexRow:
        snapshot = self._snapshot
        if HIT.fullmatch(name):
            positions = snapshot.positions_of(ROW, int(name, 16))
            if len(positions):
                return snapshot.read(positions[:1])[0]
        raise HttpRefusal(404, "no such hit", "Search again: the index has changed since")

    def _reopen(self) -> None:
        """Reopen the index if one of its files has changed. Raises PenstockError, also for an index
        of another model. On failure the version opened before stays."""
        with self._opening:
            try:
                stamp = model_stamp_of(self.folder / BOOK)
            except OSError as error:
                raise EnvironmentFault(
                    f"index {self.folder} cannot be read ({error.strerror})",
                    hint="Restore it, or build it again",
                ) from error
            if self._stamp == (*stamp, *self._stamps()):
                return
            snapshot = open_snapshot(self.folder)
            refuse_other(self.folder, snapshot.manifest.maker, self.maker)
            self._searcher = Searcher(snapshot)
            self._stamp = (*stamp, *self._stamps())

    def _stamps(self) -> Iterator[Stamp | None]:
        """Yield the stamp of each file of the newest version; None: it cannot be read."""
        for file in () if self._searcher is None else self._snapshot.manifest.files():
            try:
                yield stamp_of(self.folder / file.name)
            except OSError:
                yield None


def place_of(hit: Hit) -> Place:
    return hit.path, hit.at, hit.box


def _nearest_row(snapshot: Snapshot, hit: Hit) -> int | None:
    """Return the identity of the row that is nearest to what a caption is about; None: the index
    has none of its medium."""
    positions = snapshot.positions_of(MEDIUM, medium_of(hit.path))
    if not len(positions):
        return None
    times = snapshot.times(positions)
    at = 0 if hit.at is None else int(np.nanargmin(np.abs(times - hit.at)))
    return int(snapshot.identities_at(ROW, positions[at : at + 1])[0])
