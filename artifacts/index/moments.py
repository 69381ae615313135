"""Joins the video frames that a search found into moments.

A cosine of 0.3 may be high or low, so scores are compared with that of the mean image, which shows
how close an average image is to the query. A moment extends from its peak to both sides while the
neighbouring frames stay above half of the peak's height over that baseline.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from artifacts.index.search import Found, Query, Searcher
from artifacts.index.shard import MEDIUM, IndexRow, Positions, medium_of

SHARE = 0.5
"""Part of the peak's height that a moment's frames have."""
WIDER = 4
"""So many times more frames are looked at when they are of too few moments."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Moment:
    """A time span of one video, or one image, that a search found."""

    position: int
    """Position of its best row."""
    row: IndexRow
    """Its best row."""
    score: float
    start: float | None
    """Seconds where it begins; None of a picture."""
    end: float | None
    """Seconds where it ends: where the frame after its last one is."""


def moments(searcher: Searcher, query: Query, count: int) -> list[Moment]:
    """Return the `count` best moments, fewer where there are not as many."""
    wanted = count
    while True:
        hits = searcher.find(query, wanted)
        joined = _joined(searcher, query, hits, count)
        if len(joined) >= count or len(hits.positions) < wanted:
            return joined
        wanted *= WIDER


def single(searcher: Searcher, hits: Found) -> list[Moment]:
    """Return each row by itself: a frame has the time at which it is seen."""
    rows = searcher.snapshot.read(hits.positions)
    numbers = zip(hits.positions.tolist(), rows, hits.scores.tolist(), strict=True)
    return [
        Moment(position=position, row=row, score=score, start=row.time, end=row.time)
        for position, row, score in numbers
    ]


def _joined(searcher: Searcher, query: Query, hits: Found, count: int) -> list[Moment]:
    moments_joined: list[Moment] = []
    media: dict[str, _Frames] = {}
    taken: set[int] = set()
    for position, score in zip(hits.positions.tolist(), hits.scores.tolist(), strict=True):
        if position in taken:
            continue
        (row,) = searcher.snapshot.read(np.array([position]))
        start = end = None
        if row.time is not None:
            if row.path not in media:
                media[row.path] = _Frames(searcher, query, row.path)
            start, end, joined = media[row.path].around(row.time, score)
            taken.update(joined)
        moments_joined.append(Moment(position=position, row=row, score=score, start=start, end=end))
        if len(moments_joined) == count:
            break
    return moments_joined


class _Frames:
    """The frames of one video in time order, each with the best score of its rows."""

    def __init__(self, searcher: Searcher, query: Query, path: str) -> None:
        positions = searcher.snapshot.positions_of(MEDIUM, medium_of(path))
        times = searcher.snapshot.times(positions)
        order = np.argsort(times, kind="stable")
        self._positions: Positions = positions[order]
        self._times, self._first = np.unique(times[order], return_index=True)
        scores = searcher.scores(query.vector, self._positions)
        self._scores: NDArray[np.float32] = np.maximum.reduceat(scores, self._first)
        self._floor = searcher.ordinary(query.vector)
        steps = np.diff(self._times)
        self._step = float(np.median(steps)) if len(steps) else 0.0
        """Seconds from one frame to the next."""

    def around(self, time: float, peak: float) -> tuple[float, float, list[int]]:
        """Return start and end of the moment around a frame, and the positions it takes."""
        enough = self._floor + SHARE * (peak - self._floor)
        high = self._scores > enough
        first = last = int(np.searchsorted(self._times, time))
        while first > 0 and high[first - 1]:
            first -= 1
        while last + 1 < len(self._times) and high[last + 1]:
            last += 1
        after = last + 1 < len(self._times)
        end = float(self._times[last + 1] if after else self._times[last] + self._step)
        bounds = [*self._first.tolist(), len(self._positions)]
        joined = self._positions[bounds[first] : bounds[last + 1]]
        return float(self._times[first]), end, joined.tolist()
