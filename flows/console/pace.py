"""Tells how fast a stage is and when it will be through; knows no stage."""

import math
from collections import deque

WINDOW_SECONDS = 120.0
"""How far back is looked at: what was slow an hour ago says nothing of the rest."""


class Pace:
    """The items of a stage over time, from when it could begin with the first."""

    def __init__(self, now: float) -> None:
        self._seen: deque[tuple[float, int]] = deque([(now, 0)])

    def begin(self, now: float) -> None:
        """Count from now on: what came before was loading."""
        if self._seen[-1][1] == 0:
            self._seen = deque([(now, 0)])

    def count(self, now: float) -> None:
        """Count an item."""
        self._seen.append((now, self._seen[-1][1] + 1))
        while len(self._seen) > 2 and now - self._seen[1][0] > WINDOW_SECONDS:
            self._seen.popleft()

    @property
    def rate(self) -> float:
        """Return items a second; 0 before the first."""
        (then, before), (now, made) = self._seen[0], self._seen[-1]
        return (made - before) / (now - then) if now > then else 0.0

    def seconds_left(self, items: int) -> float:
        """Return the seconds that so many more will take; infinite before the first."""
        return items / self.rate if self.rate else math.inf
