"""Computes the square tiles that an image is cut into, so that a model sees small details. Opens no
file.

A tile level holds squares of one side that overlap by a quarter; the last of a row or column is
flush with the edge. The first box is always the whole image.
"""

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from artifacts.errors import UsageError

OFF, AUTO = "off", "auto"
OVERLAP = 0.25
"""Share of a tile that overlaps with its neighbour."""
LEVELS = (2, 4)
"""Approximate number of tiles along the short side, for each level of `auto`."""
LEAST = 4
"""With `auto`, an image is tiled if its short side is this many times the model's input."""
LARGE = 1 << 24
"""Pixels above which a tile is resized before the model's processor, which makes several copies of
it."""
MOST = 64
"""Largest number of tiles along the short side."""


class Box(NamedTuple):
    """A rectangle of an image in pixels. The last two coordinates are exclusive."""

    level: int
    """0: the whole image; else the approximate number of tiles along its short side."""
    left: int
    top: int
    right: int
    bottom: int


def check_tiles(tiles: str) -> None:
    """Raise UsageError for an invalid setting."""
    if tiles in (OFF, AUTO, *map(str, range(2, MOST + 1))):
        return
    raise UsageError(
        f"unknown --tiles {tiles}",
        hint=f"Give off, auto, or the number of tiles along the short side: 2 to {MOST}",
    )


@lru_cache
def boxes_of(height: int, width: int, tiles: str, edge: int) -> tuple[Box, ...]:
    """Return the boxes of an image that are embedded. `edge` is the side of the model's input in
    pixels."""
    short = min(height, width)
    boxes = [Box(0, 0, 0, width, height)]
    for level in _levels(short, tiles, edge):
        side = max(1, short // level)
        boxes += [
            Box(level, left, top, left + side, top + side)
            for top in _starts(height, side)
            for left in _starts(width, side)
        ]
    return tuple(boxes)


def _levels(short: int, tiles: str, edge: int) -> Iterator[int]:
    if tiles.isdecimal():
        yield int(tiles)
    elif tiles == AUTO and short >= LEAST * edge:
        # A tile that is hardly larger than the input shows nothing that a larger one hides.
        yield from (level for level in LEVELS if short // level >= 2 * edge or level == LEVELS[0])


def _starts(length: int, side: int) -> list[int]:
    """Return where the tiles along a length begin, evenly."""
    steps = math.ceil((length - side) / (side * (1 - OVERLAP)))
    return [round(at * (length - side) / steps) for at in range(steps + 1)] if steps else [0]
