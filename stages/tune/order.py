"""Says which examples each step is of, by the seed alone; knows no example.

An epoch goes through all once, in an order of its own. Those of one step that can go through the
half together do: so within a window, the shuffled examples are put with those that are like them,
and cut into batches, whose order is shuffled again.
"""

import math
import random
from collections.abc import Hashable, Sequence
from functools import lru_cache

WINDOW = 16
"""Batches among whose examples those are sought that are alike."""


class Order:
    """The order in which so many examples are gone through, told by what each is alike in."""

    def __init__(self, alike: Sequence[Hashable], batch: int, seed: int) -> None:
        self._alike = tuple(alike)
        self._batch = batch
        self._seed = seed
        self.epoch_steps = math.ceil(len(alike) / batch)
        """Steps of an epoch; the last may be of fewer examples."""
        self._batches = lru_cache(maxsize=1)(self._batches_of)

    def of_step(self, step: int) -> list[int]:
        """Return the places of the examples of a step; steps count from 0."""
        epoch, at = divmod(step, self.epoch_steps)
        return self._batches(epoch)[at]

    def _batches_of(self, epoch: int) -> list[list[int]]:
        draw = random.Random(f"{self._seed} {epoch}")
        order = list(range(len(self._alike)))
        draw.shuffle(order)
        first = {kind: at for at, kind in reversed(list(enumerate(self._alike)))}
        found, window = list[list[int]](), WINDOW * self._batch
        for start in range(0, len(order), window):
            some = sorted(order[start : start + window], key=lambda at: first[self._alike[at]])
            found += [some[at : at + self._batch] for at in range(0, len(some), self._batch)]
        draw.shuffle(found)
        return found
