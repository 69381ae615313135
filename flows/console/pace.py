"""Computes the rate of a stage and its remaining time."""

import math
from collections import deque
from dataclasses import dataclass

WINDOW_SECONDS = 120.0
"""How far back is looked at least, and half the way to the beginning: what was slow long ago says
nothing of the rest, and a few items say little."""
TOGETHER_SECONDS = 0.1
"""Items within so much of the first of them were made together: a batch is told item by item."""


@dataclass(frozen=True, slots=True)
class ItemGroup:
    """Items that were made in one batch."""

    first: float
    last: float
    made: int
    """Items up to its last."""


class Pace:
    """The item counts of a stage over time, from the moment it could start the first item. One
    thread writes, any thread reads."""

    def __init__(self, now: float) -> None:
        self._begun = now
        self._groups: deque[ItemGroup] = deque()
        self._rate = 0.0
        """Items a second of the groups that are complete; 0: there is none."""

    def begin(self, now: float) -> None:
        """Count from now on: what came before was loading."""
        if not self._groups:
            self._begun = now

    def count(self, now: float) -> None:
        """Count an item."""
        newest = self._groups[-1] if self._groups else ItemGroup(now, now, 0)
        if now - newest.first >= TOGETHER_SECONDS:
            self._rate = self._complete(newest)
            self._groups.append(ItemGroup(now, now, newest.made + 1))
            return
        grown = ItemGroup(newest.first, now, newest.made + 1)
        if self._groups:
            self._groups[-1] = grown
        else:
            self._groups.append(grown)

    def rate(self, now: float) -> float:
        """Return items a second; 0 while nothing can be said."""
        newest = self._groups[-1] if self._groups else None
        if self._rate or newest is None or now - newest.first < TOGETHER_SECONDS:
            return self._rate
        return self._since_begun(newest)

    def seconds_left(self, items: int, now: float) -> float:
        """Return the seconds that so many more will take; infinite while nothing can be said."""
        rate = self.rate(now)
        return items / rate if rate else math.inf

    def _complete(self, newest: ItemGroup) -> float:
        """Return the rate up to the end of a group. What the first one took is left out as soon as
        there is another: it is warming up, too."""
        back = max(WINDOW_SECONDS, (newest.last - self._begun) / 2)
        while len(self._groups) > 2 and newest.last - self._groups[1].last > back:
            self._groups.popleft()
        oldest = self._groups[0]
        if oldest.made == newest.made:
            return self._since_begun(newest)
        return (newest.made - oldest.made) / (newest.last - oldest.last)

    def _since_begun(self, newest: ItemGroup) -> float:
        seconds = newest.last - self._begun
        return newest.made / seconds if seconds > 0 else 0.0
