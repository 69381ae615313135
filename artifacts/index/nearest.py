"""Keeps the smallest of many numbers that arrive in blocks, in a stable order."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Positions = NDArray[np.int64]
SLACK = 4
"""So many times what is wanted may wait before the rest is dropped."""


class Nearest:
    """The `count` smallest values so far with their positions. Ties keep the first."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._waiting: list[tuple[Positions, NDArray[Any]]] = []
        self._held = 0
        self._limit: Any = None
        """Only what is below this can still be among the smallest; None: anything can."""

    def offer(self, start: int, values: NDArray[Any], kept: NDArray[np.bool_] | None) -> None:
        """Take the values of consecutive positions from `start` on, but those that are not `kept`.
        Blocks come in order."""
        if self._limit is not None:
            near = values < self._limit
            if kept is not None:
                near &= kept
        elif kept is not None:
            near = kept
        else:
            near = np.ones(len(values), np.bool_)
        at = np.flatnonzero(near)
        if len(at):
            self._waiting.append((at + start, values[at]))
            self._held += len(at)
        if self._held > SLACK * self._count:
            self.best()

    def best(self) -> tuple[Positions, NDArray[Any]]:
        """Return the positions and values of the smallest, the smallest first."""
        if not self._waiting:
            return np.empty(0, np.int64), np.empty(0)
        positions = np.concatenate([found for found, _ in self._waiting])
        values = np.concatenate([value for _, value in self._waiting])
        order = np.argsort(values, kind="stable")[: self._count]
        if len(order) == self._count:
            self._limit = values[order[-1]]
        self._waiting = [(positions[order], values[order])]
        self._held = len(order)
        return self._waiting[0]
