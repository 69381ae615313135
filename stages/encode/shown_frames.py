"""Selects a chunk's frames for models that take a fixed number of frames. Imports no library."""

from collections.abc import Sequence

SHORTEST = 0.04
"""Seconds that a chunk is taken to last at least, when its frames are shown more than once."""


def shown_frames(
    times: Sequence[float], seconds: float, count: int
) -> tuple[list[int], tuple[float, ...]]:
    """Return the indexes of the frames that stand for a chunk of so many `seconds` in `count`
    frames, and their times: some of them, evenly, or all and some of them twice or more."""
    taken = [index * len(times) // count for index in range(count)]
    if count <= len(times):
        return taken, tuple(times[index] for index in taken)
    first, step = times[0], max(seconds, SHORTEST) / count
    return taken, tuple(first + index * step for index in range(count))
