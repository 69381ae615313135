"""Finds the rows of an index nearest to a query: first by their bits, then exactly.

The bits of a vector state on which side of the mean image it lies. Query bits are computed relative
to a mean, too. Text vectors lie in another region than image vectors. Where they are far away, bits
relative to the image mean would all be equal. Where their differences are faint, bits relative to
the text mean lose what the texts share. The better of the two means is therefore measured. The rows
with the smallest bit distance are then compared exactly.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from artifacts.index.manifest import SearchMethod
from artifacts.index.shard import (
    BATCH_ROWS,
    CONTENT,
    PICTURE,
    Halves,
    Positions,
    bits_of,
    damaged_file,
    differences,
    unit,
)
from artifacts.index.snapshot import Kept, Snapshot, of_all
from artifacts.records.vectors import Vectors

Sort = Literal["pictures", "texts"]
LEAST_RECALL = 0.99
"""The first pass is used where it is measured to find so many of the nearest."""
EXACT = SearchMethod(queries=0, recall=1.0, candidates=0)
"""The method of comparing every row."""
CANDIDATES_PER_HIT = 20
"""At least so many rows are compared exactly for each that is asked for."""
WIDER = 4
"""So many times more rows are looked at when too few are left of them."""
SCAN_ROWS = 256
"""Rows that are read and compared at once: they stay in a core's own cache."""
LENGTH_ERROR = 0.01
"""Least error of a stored unit vector's length that rounding to 16 bit cannot cause."""
FEW = 20
"""Up to one row in so many is compared alone: that costs as much as the bits of all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Query:
    """A query vector and its filters."""

    vector: NDArray[np.float32]
    """Shape (width)."""
    sort: Sort = "pictures"
    without: tuple[NDArray[np.float32], ...] = ()
    """A row that is nearer to one of these is left out."""
    kept: Kept | None = None
    """The rows that count; None: all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """Rows ordered by similarity, the nearest first. Ties keep the order in which rows
    were added."""

    positions: Positions
    scores: NDArray[np.float32]
    """Cosines, as many."""


class Searcher:
    """One version of an index, opened for many queries."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        means = snapshot.manifest.means
        self._means = {sort: np.array(mean, np.float32) for sort, mean in means.items()}

    @cached_property
    def _distinct(self) -> Kept:
        return self.distinct(self.snapshot.live())

    def distinct(self, kept: Kept) -> Kept:
        """Return the first row of each content among those kept: copies of a picture are found
        through it."""
        at = np.flatnonzero(kept)
        _, first = np.unique(of_all(self.snapshot, CONTENT)[at], return_index=True)
        only = np.zeros(len(kept), np.bool_)
        only[at[first]] = True
        return only

    def find(
        self, query: Query, count: int, method: SearchMethod | None = None, *, parts: bool = False
    ) -> Found:
        """Return the `count` nearest pictures, each by its nearest part, or with `parts` the
        nearest parts; fewer where there are not as many. It uses `method`: by default the one that
        the index was measured to need. Raises EnvironmentFault for a hit whose vector is damaged.
        """
        method = self.method(query.sort) if method is None else method
        kept = self._distinct
        if query.kept is not None:
            kept = self.distinct(query.kept & self.snapshot.live())
        total = int(kept.sum())
        wide = max(method.candidates, CANDIDATES_PER_HIT * count) if method.candidates else total
        while True:
            hits = self._found(query, kept, min(wide, total), method.centre)
            hits = hits if parts else self._pooled(hits)
            if len(hits.positions) >= count or wide >= total:
                self._check_lengths(hits.positions[:count])
                return Found(positions=hits.positions[:count], scores=hits.scores[:count])
            wide *= WIDER

    def method(self, sort: Sort) -> SearchMethod:
        """Return the method that finds enough: the exact one where that was not measured."""
        measured = self.snapshot.manifest.measured.get(sort)
        return measured if measured is not None and measured.recall >= LEAST_RECALL else EXACT

    def scores(self, vector: NDArray[np.float32], positions: Positions) -> NDArray[np.float32]:
        """Return how near the rows at these positions are: cosines."""
        cosines = self._scores([vector], positions)
        self._check_numbers(cosines, positions)
        scores: NDArray[np.float32] = cosines[0]
        return scores

    def ordinary(self, vector: NDArray[np.float32]) -> float:
        """Return how near the mean picture is to a vector: a score that says nothing."""
        mean = self._means.get("pictures")
        return 0.0 if mean is None else float(mean @ direction(vector))

    def _found(self, query: Query, kept: Kept, wide: int, centre: str) -> Found:
        """Return every kept row in order, or the nearest of about `wide` that are looked at."""
        vectors = [query.vector, *query.without]
        positions = np.flatnonzero(kept)
        few = len(positions) <= self.snapshot.rows // FEW
        if not few and wide < len(positions):
            positions, few = np.sort(self._first_pass(query.vector, centre, kept, wide)), True
        scores = self._scores(vectors, positions) if few else self.scan(vectors)[:, positions]
        self._check_numbers(scores, positions)
        above = scores - np.array([self.ordinary(vector) for vector in vectors])[:, None]
        allowed = (above[1:] < above[0]).all(axis=0)
        positions, near = positions[allowed], scores[0, allowed]
        order = np.argsort(-near, kind="stable")
        return Found(positions=positions[order], scores=near[order])

    def _check_numbers(self, scores: NDArray[np.float32], positions: Positions) -> None:
        """Raise EnvironmentFault for a stored vector that is not made of finite numbers."""
        broken = positions[~np.isfinite(scores).all(axis=0)]
        if len(broken):
            path = self.snapshot.vectors_file(broken[:1])
            raise damaged_file(path, "is damaged: a vector is not made of numbers")

    def _check_lengths(self, positions: Positions) -> None:
        """Raise EnvironmentFault for a stored vector of another length than 1."""
        lengths, broken = lengths_of(self.snapshot.halves(positions))
        if len(broken):
            at = positions[broken[:1]]
            (row,) = self.snapshot.read(at)
            what = (
                f"the vector of {row.media_path} has the length {lengths[broken[0]]:.3g} and not 1"
            )
            raise damaged_file(self.snapshot.vectors_file(at), f"is damaged: {what}")

    def _pooled(self, hits: Found) -> Found:
        """Return the nearest part of each picture."""
        pictures = self.snapshot.identities_at(PICTURE, hits.positions)
        first = np.sort(np.unique(pictures, return_index=True)[1])
        return Found(positions=hits.positions[first], scores=hits.scores[first])

    def _first_pass(
        self, vector: NDArray[np.float32], centre: str, kept: Kept, wide: int
    ) -> Positions:
        """Return the `wide` rows of more that are kept whose bits differ least from the query's."""
        centred = direction(vector) - self._means[centre]
        bits = bits_of(centred[None])[:, 0]
        differing = np.empty(self.snapshot.rows, np.uint16)
        for shard in self.snapshot.shards:
            assert shard.bits is not None
            differing[shard.start : shard.start + shard.rows] = differences(shard.bits, bits)
        positions = np.flatnonzero(kept)
        # Sorting all takes 40 times as long as finding the limit: 40 ms for a million rows.
        limit = np.partition(differing[positions], wide - 1)[wide - 1]
        near: Positions = positions[differing[positions] <= limit]
        return near[np.argsort(differing[near], kind="stable")[:wide]]

    def _scores(
        self, vectors: Sequence[NDArray[np.float32]], positions: Positions
    ) -> NDArray[np.float32]:
        wanted = _halves(vectors)
        scores = np.empty((len(vectors), len(positions)), np.float32)
        for start in range(0, len(positions), BATCH_ROWS):
            block = slice(start, start + BATCH_ROWS)
            scores[:, block] = _cosines(wanted, self.snapshot.halves(positions[block]))
        return scores

    def scan(self, vectors: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Return the exact scores of every row for each of these, shape (vectors, rows)."""
        wanted = _halves(vectors)
        scores = np.empty((len(vectors), self.snapshot.rows), np.float32)
        block = np.empty((SCAN_ROWS, self.snapshot.manifest.maker.width), np.float16)
        for shard in self.snapshot.shards:
            for first in range(0, shard.rows, SCAN_ROWS):
                rows = block[: shard.rows - first]
                shard.vectors.read(first, rows)
                start = shard.start + first
                scores[:, start : start + len(rows)] = _cosines(wanted, rows)
        return scores


def lengths_of(vectors: Halves) -> tuple[NDArray[np.float32], Positions]:
    """Return the lengths of stored vectors, and the positions of those that are not 1. Zeros
    are those of a vector without a direction."""
    lengths = np.linalg.norm(vectors.astype(np.float32), axis=1)
    return lengths, np.flatnonzero(~(np.abs(lengths - 1) <= LENGTH_ERROR) & (lengths != 0))


def _cosines(wanted: Halves, rows: Halves) -> NDArray[np.float32]:
    """Return the dot products of unit vectors, shape (wanted, rows)."""
    # Its `out_dtype` would first convert all rows: 110 ms for 65,536 rows of 768 instead of 5.
    import numkong  # reports import this module for its conditions, and need no extra

    products = np.asarray(numkong.cdist(rows, wanted, "dot"), np.float32)
    return products.reshape(len(rows), len(wanted)).T


def _halves(vectors: Sequence[NDArray[np.float32]]) -> Halves:
    return np.concatenate([unit(np.asarray(vector, np.float32)[None]) for vector in vectors])


def direction(vector: Vectors) -> NDArray[np.float32]:
    """Return a vector at length one, rounded as those of the index are."""
    rounded: NDArray[np.float32] = unit(np.asarray(vector, np.float32)[None])[0].astype(np.float32)
    return rounded
