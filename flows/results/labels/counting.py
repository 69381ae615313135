"""Counts what each label was given to, and how its scores lie; runs no model, and writes nothing.

Scores are counted in narrow ranges, so that a million pictures take no more memory than one.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from artifacts.labels import Labelled
from flows.media.media_files import MediaFile
from flows.results.labels.rows import Judged, Labelling

FINE = 4096
"""Ranges from -1 to 1 that scores are counted in: vectors in 16 bit know no narrower ones."""
BINS = 50
"""Most ranges in which the scores of a label are told."""


class LabelCounts:
    """Counts of one run."""

    def __init__(self, labelling: Labelling) -> None:
        self._labelling = labelling
        size = len(labelling.labels.labels)
        self.pictures = self.labelled = 0
        self.lines: Counter[MediaFile] = Counter()
        """Lines of each file."""
        self._passed = np.zeros(size, np.int64)
        self._fine = np.zeros((size, FINE), np.uint32)
        self._sums = np.zeros((2, size), np.float64)

    def through(self, found: Iterator[Judged]) -> Iterator[Labelled]:
        """Yield the rows, and count them."""
        every = np.arange(len(self._passed))
        for each in found:
            scores = each.scores.astype(np.float64)
            self.pictures += len(each.rows)
            self.lines[each.file] += len(each.rows)
            self.labelled += int(each.passed.any(axis=1).sum())
            self._passed += each.passed.sum(axis=0)
            self._sums += scores.sum(axis=0), (scores**2).sum(axis=0)
            for places in ((scores + 1) * (FINE / 2)).astype(np.int64).clip(0, FINE - 1):
                self._fine[every, places] += 1
            yield from each.rows

    @property
    def given(self) -> int:
        return int(self._passed.sum())

    def report(self) -> dict[str, Any]:
        """Return for each label how many there were, their scores, and the rule. `low` and `high`
        are where the ranges of all labels' `bins` begin and end."""
        seen = np.flatnonzero(self._fine.any(axis=0))
        first, last = (int(seen[0]), int(seen[-1]) + 1) if len(seen) else (0, BINS)
        width = -(-(last - first) // BINS)
        starts = np.arange(first, last, width)
        bins = np.add.reduceat(self._fine[:, :last], starts, axis=1)
        return {
            "pictures": self.pictures,
            "labelled": self.labelled,
            "labels_digest": self._labelling.labels.digest,
            "scale": self._labelling.texts.scale,
            "bias": self._labelling.texts.bias,
            "low": score_of(first),
            "high": score_of(int(starts[-1]) + width),
            "labels": [
                self._of(at, name, bins[at]) for at, name in enumerate(self._labelling.labels.names)
            ],
        }

    def _of(self, at: int, name: str, bins: Any) -> dict[str, Any]:
        judge = self._labelling.judge
        threshold = judge.thresholds[at]
        middle = deviation = None
        if self.pictures:
            half = int(np.searchsorted(self._fine[at].cumsum(), self.pictures / 2))
            middle = score_of(half + 0.5)
            mean, squares = self._sums[:, at] / self.pictures
            deviation = round(float(max(0.0, squares - mean**2) ** 0.5), 6)
        return {
            "label": name,
            "passed": int(self._passed[at]),
            "median": middle,
            "deviation": deviation,
            "threshold": None if np.isnan(threshold) else threshold,
            "from": judge.rules[at],
            "bins": bins.tolist(),
        }


def score_of(place: float) -> float:
    """Return the score at a place among the narrow ranges."""
    return round(place / (FINE / 2) - 1, 6)
