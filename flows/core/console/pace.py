"""Computes how fast the items of a stage are made, from when each was."""

from collections import deque
from dataclasses import dataclass

WINDOW_SECONDS = 120.0
"""Minimum window of the rate; the window is at least half of the elapsed time. Old items do not
predict the rest, and a few items are not enough."""
GROUP_SECONDS = 0.1
"""Items within this time of the first one belong to one batch, which is reported item by item."""

STEADY_ITEMS, STEADY_SECONDS = 10, 5.0
"""Items, and seconds since the stage was ready, from which the time left is shown."""
SLOW_SECONDS = 20.0
"""The same where an item takes long: seconds without regard to the number of items."""


@dataclass(frozen=True, slots=True)
class ItemGroup:
    """Items of one batch."""

    first: float
    last: float
    made: int
    """Total number of items up to its last one."""


class Pace:
    """The item counts of a stage over time, since it was ready. One thread writes, any thread
    reads."""

    def __init__(self, now: float) -> None:
        self._begun = now
        self._groups: deque[ItemGroup] = deque()
        self._rate = 0.0
        """Items per second of the complete groups; 0: none."""

    def begin(self, now: float) -> None:
        """Restart the clock after loading."""
        if not self._groups:
            self._begun = now

    def count(self, now: float, made: int = 1) -> None:
        newest = self._groups[-1] if self._groups else ItemGroup(now, now, 0)
        if now - newest.first >= GROUP_SECONDS:
            self._rate = self._complete(newest)
            self._groups.append(ItemGroup(now, now, newest.made + made))
            return
        grown = ItemGroup(newest.first, now, newest.made + made)
        if self._groups:
            self._groups[-1] = grown
        else:
            self._groups.append(grown)

    def rate(self, now: float) -> float:
        """Return items per second; 0: unknown."""
        newest = self._groups[-1] if self._groups else None
        if self._rate or newest is None or now - newest.first < GROUP_SECONDS:
            return self._rate
        return self._since_begun(newest)

    def is_steady(self, now: float) -> bool:
        """Return whether enough was made for an estimate of the time left."""
        seconds, done = now - self._begun, self._groups[-1].made if self._groups else 0
        return seconds >= (STEADY_SECONDS if done >= STEADY_ITEMS else SLOW_SECONDS)

    def _complete(self, newest: ItemGroup) -> float:
        """Return the rate up to the end of a group. The first group includes warm-up, so it is left
        out once there is another one."""
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
