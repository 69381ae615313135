"""Groups vectors whose cosine reaches a threshold.

Many vectors are shared out among the lists of a k-means, and each is compared with the members of
the lists nearest to it. How many lists that takes is measured. Every pair that counts was compared
exactly, so only pairs can be missed.
"""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from artifacts.packages import require_extra
from artifacts.records.vectors import Vectors

if TYPE_CHECKING:
    from faiss import Index

EXACT_ROWS = 1 << 14
"""So many rows or fewer are all compared with each other: 4 s of CPU."""
LISTS = 3
"""There are so many times the square root of the rows lists: looking for lists then costs about as
much as comparing their members."""
TRAINED_ROWS, ROUNDS = 40, 2
"""Rows per list that the k-means sees, and its iterations. More found no more (docs/log.md)."""
SAMPLE, MIXED = 2000, 8
"""Rows that the number of lists is measured with, and of how many others each is moved by."""
LEAST_FOUND, MOST_LISTS = 0.99, 128
"""Share of those that have to be found in the lists looked into, and at most so many of these: more
would take over 3 GB for a million rows."""
BLOCK_ROWS = 1 << 12
BLOCK_PROBES = 1 << 9
"""Rows compared at once, as members of a list and as those that look there: 8 MB of cosines."""
JOINED_PAIRS, MOST_PAIRS = 1 << 22, 1 << 25
"""So many new pairs are kept before they are joined, and so many pairs in all: 2 GB."""
Numbers = NDArray[np.int64]
Halves = NDArray[np.float16]
AnyVectors = NDArray[np.float16 | np.float32]


Near = tuple[Numbers, Numbers, int]
"""Of some items, the best first: the first of those that are equal to each, its node; the nodes of
which one is a direct copy of the other [n, 2], each pair once; and of how many of the first items
these are all pairs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairs:
    """Copies that were found before."""

    contents: Numbers
    """Number of the content of each item; those of one content are equal."""
    pairs: Numbers
    """Pairs of contents that are direct copies of each other, of shape [n, 2]; each pair once."""

    def among(self, items: Numbers) -> Near:
        nodes = np.full(int(self.contents.max(initial=-1)) + 1, -1)
        contents = self.contents[items[::-1]]
        nodes[contents] = np.arange(len(items))[::-1]  # the first of each content is written last
        pairs = nodes[self.pairs]
        return nodes[self.contents[items]], pairs[(pairs >= 0).all(axis=1)], len(items)


@dataclass(frozen=True, kw_only=True, slots=True)
class Alike:
    """Items whose vectors have at least this cosine. A vector of zeros, or not of numbers, is that
    of no other item."""

    vectors: AnyVectors
    """Of shape (items, width) in 16 or 32 bit, with rows of any length."""
    threshold: float

    def among(self, items: Numbers) -> Near:
        return _Comparison(self.vectors[items], self.threshold).near()


Copies = Pairs | Alike


def stars(
    copies: Sequence[Copies],
    order: Numbers,
    count: int,
    begins: Callable[[int, Sequence[bool]], bool] = lambda item, is_copy: False,
) -> tuple[Numbers, NDArray[np.bool_]]:
    """Return the best item of the group of each of `count` items, -1 for one that is not in
    `order`, and which items are copies of the best of a group [len(copies), count].

    1. `order` has items, the best first. The first item that is in no group begins a group.
    2. The group takes all direct copies of this item, by any of `copies`.
    3. The next item that is in no group begins the next group. So each item of a group is a direct
       copy of its best item, and a chain of pairs forms no group.
    4. An item that is a copy begins a group, too, if `begins` returns True for the item and for
       which of `copies` it is a copy.
    """
    best, flags = np.full(count, -1), np.zeros((len(copies), count), np.bool_)
    while len(order):
        graphs = [
            (nodes, *_neighbours(pairs, len(order)), np.full(len(order), -1), complete)
            for nodes, pairs, complete in (kind.among(order) for kind in copies)
        ]
        for at in range(min(complete for *_, complete in graphs)):
            is_copy = [bool(owners[nodes[at]] >= 0) for nodes, _, _, owners, _ in graphs]
            if not any(is_copy) or begins(int(order[at]), is_copy):
                for nodes, bounds, others, owners, _ in graphs:
                    near = others[bounds[nodes[at]] : bounds[nodes[at] + 1]]
                    for new in (near, nodes[at : at + 1]):
                        owners[new[owners[new] < 0]] = at
        stacked = np.stack([owners[nodes] for nodes, _, _, owners, _ in graphs])
        flags[:, order] = (stacked >= 0) & (stacked != np.arange(len(order)))
        owner = stacked.max(axis=0)
        best[order[owner >= 0]] = order[owner[owner >= 0]]
        order = order[owner < 0]
    return best, flags


def _neighbours(pairs: Numbers, count: int) -> tuple[Numbers, Numbers]:
    """Return where the direct copies of each node begin, and those of all nodes in one row."""
    ends = np.concatenate([pairs, pairs[:, ::-1]])
    ends = ends[np.argsort(ends[:, 0], kind="stable")]
    return np.searchsorted(ends[:, 0], np.arange(count + 1)), ends[:, 1]


def groups(vectors: AnyVectors, threshold: float) -> Numbers:
    """Return for each row the first row of its group, itself where it is alone.

    A group is its first row and those of the rest whose cosine with it is at least `threshold`.
    `vectors` has shape (rows, width) in 16 or 32 bit, with rows of any length. A vector of zeros,
    or not of numbers, is alone. Raises MissingPackage where the extra `sift` is not installed.
    """
    require_similar()
    alike, count = Alike(vectors=np.asarray(vectors), threshold=threshold), len(vectors)
    return stars([alike], np.arange(count), count)[0]


def require_similar() -> None:
    """Raise MissingPackage where the extra `sift` is not installed."""
    require_extra("sift", "a search for near duplicates by vectors")


class _Comparison:
    """The rows of one call, the best first, and which pairs of them were found so far."""

    def __init__(self, vectors: AnyVectors, threshold: float) -> None:
        self._vectors = vectors
        self._threshold = threshold
        self._scales, seen = np.empty(len(vectors), np.float32), np.empty(len(vectors), np.int64)
        for start in range(0, len(vectors), BLOCK_ROWS):
            span = slice(start, start + BLOCK_ROWS)
            block = np.asarray(vectors[span])
            seen[span] = [hash(row.tobytes()) for row in block]
            self._scales[span] = _scales(_wide(block))
        _, first, same = np.unique(seen, return_index=True, return_inverse=True)
        self._firsts = np.where(self._scales > 0, first[same], np.arange(len(vectors)))
        self._distinct = np.sort(first[self._scales[first] > 0])
        self._mean = np.zeros(vectors.shape[1], np.float32)
        self._complete = len(vectors)
        self._keys: list[Numbers] = []
        self._waiting = 0
        self._lock = threading.Lock()

    def near(self) -> Near:
        """Compare the rows; return the pairs."""
        # Threads of our own: those of a BLAS wait for each other at each of many small products,
        # which took 14 times as long while other processes kept the cores busy.
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            for _ in pool.map(self._compare, self._lists()):
                pass
        self._join()
        pairs = np.stack(np.divmod(self._keys[0], len(self._firsts)), axis=1)
        return self._firsts, pairs, self._complete

    def _compare(self, list_of: tuple[Numbers, int]) -> None:
        """Compare the members of a list with all rows that look there."""
        import numkong

        at, rank = np.divmod(*list_of)
        probes = self._distinct[at]
        members = probes[rank == 0]
        for low in range(0, len(members), BLOCK_ROWS):
            owners = members[low : low + BLOCK_ROWS]
            packed = numkong.dots_pack(self._units(owners))
            for start in range(0, len(probes), BLOCK_PROBES):
                looking = probes[start : start + BLOCK_PROBES]
                cosines = np.asarray(numkong.dots_packed(self._units(looking), packed))
                at, to = np.divmod(np.flatnonzero(cosines >= self._threshold), len(owners))
                self._note(looking[at], owners[to])

    def _note(self, some: Numbers, others: Numbers) -> None:
        """Keep pairs; join them when there are many."""
        low, high = np.minimum(some, others), np.maximum(some, others)
        keys = (low * len(self._firsts) + high)[(low < high) & (low < self._complete)]
        with self._lock:
            self._keys.append(keys)
            self._waiting += len(keys)
            if self._waiting > JOINED_PAIRS:
                self._join()

    def _join(self) -> None:
        """Keep each pair once. Of too many, keep those of the first rows: what these take is not
        compared again."""
        keys = np.unique(np.concatenate([np.zeros(0, np.int64), *self._keys]))
        if len(keys) > MOST_PAIRS:
            self._complete = max(1, int(keys[MOST_PAIRS // 2]) // len(self._firsts))
            keys = keys[keys < self._complete * len(self._firsts)]
        self._keys, self._waiting = [keys], 0

    def _units(self, rows: Numbers) -> Halves:
        """Return rows at length one, rounded to 16 bit as those of an index."""
        import numkong

        scaled = _wide(self._vectors[rows]) * self._scales[rows, None]
        units: Halves = np.asarray(numkong.astype(scaled, "float16"))
        return units

    def _centred(self, rows: Numbers) -> Vectors:
        """Return rows at length one without what all of them share: lists near to that would be
        near to every row."""
        centred: Vectors = _wide(self._units(rows)) - self._mean
        return centred

    def _lists(self) -> Iterator[tuple[Numbers, int]]:
        """Yield for each list who looks there, as `row * lists looked into + rank of this one`, and
        how many lists are looked into. Those of rank 0 are its members."""
        rows = self._distinct
        if len(rows) <= EXACT_ROWS:
            yield np.arange(len(rows)), 1
            return
        index, probes = self._trained()
        nearest = np.empty((len(rows), probes), np.int32)
        for start in range(0, len(rows), BLOCK_ROWS):
            block = slice(start, start + BLOCK_ROWS)
            nearest[block] = index.search(self._centred(rows[block]), probes)[1]
        order = np.argsort(nearest, axis=None, kind="stable")
        ends = np.cumsum(np.bincount(nearest.ravel(), minlength=index.ntotal))
        yield from ((part, probes) for part in np.split(order, ends[:-1]))

    def _trained(self) -> tuple["Index", int]:
        """Return the index of the lists, and how many each row has to look at.

        That is measured on rows that were moved until their cosine with where they were is the
        threshold: pairs as far from each other as any that count. They are moved as rows differ
        from each other, by sums of several."""
        import faiss

        rows, draw = self._distinct, np.random.default_rng(0)
        count = int(LISTS * len(rows) ** 0.5)
        width = self._vectors.shape[1]
        chosen = draw.choice(rows, min(len(rows), TRAINED_ROWS * count), replace=False)
        self._mean = self._centred(chosen[:SAMPLE]).mean(axis=0)
        means = faiss.Kmeans(
            width, count, niter=ROUNDS, spherical=True, seed=0, min_points_per_centroid=1
        )
        means.train(self._centred(chosen))
        sample = _wide(self._units(draw.choice(rows, SAMPLE)))
        away = np.sum([self._centred(draw.choice(rows, SAMPLE)) for _ in range(MIXED)], axis=0)
        away -= np.einsum("ij,ij->i", away, sample)[:, None] * sample
        away *= (1 - self._threshold**2) ** 0.5 * _scales(away)[:, None]
        sample, moved = sample - self._mean, self._threshold * sample + away - self._mean
        homes, others = (
            means.index.search(part, min(count, MOST_LISTS))[1] for part in (sample, moved)
        )
        reached = (homes == others[:, :1]) | (others == homes[:, :1])
        shares = np.logical_or.accumulate(reached, axis=1).mean(axis=0)
        probes = int(np.searchsorted(shares, LEAST_FOUND)) + 1
        return means.index, min(probes, reached.shape[1])


def _wide(rows: AnyVectors) -> Vectors:
    """Return rows in 32 bit."""
    import numkong

    if rows.dtype == np.float16:  # in a tenth of the time of numpy's `astype`
        wide: Vectors = np.asarray(numkong.astype(np.ascontiguousarray(rows), "float32"))
        return wide
    return np.asarray(rows, np.float32)


def _scales(rows: Vectors) -> Vectors:
    """Return what makes each row as long as one; zero for one that has no direction."""
    lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    usable = np.isfinite(lengths) & (lengths > 0)
    scales: Vectors = np.divide(1, lengths, out=np.zeros_like(lengths), where=usable)
    return scales
