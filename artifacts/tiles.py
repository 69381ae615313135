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
"""Share of a square that its neighbour has too."""
LEVELS = (2, 4)
"""Squares along the short side, about, of each level that `auto` cuts."""
LEAST = 4
"""Times the model's input that the short side must be for `auto` to cut a picture."""
LARGE = 1 << 24
"""Pixels of a part above which it is made smaller before a model's processor, which takes several
copies of it, makes it smaller still."""
MOST = 64
"""Most squares along the short side that may be asked for."""


class Box(NamedTuple):
    """A rectangle of an image in pixels. The last two coordinates are exclusive."""

    level: int
    """0: the whole picture; else the squares along its short side, about."""
    left: int
    top: int
    right: int
    bottom: int


def check_tiles(tiles: str) -> None:
    """Raise UsageError for a setting that is none."""
    if tiles in (OFF, AUTO) or (tiles.isdecimal() and 2 <= int(tiles) <= MOST):
        return
    raise UsageError(
        f"--tiles {tiles} is not known",
        hint=f"Give off, auto, or how many squares fit the short side: 2 to {MOST}",
    )


@lru_cache
def boxes_of(height: int, width: int, tiles: str, edge: int) -> tuple[Box, ...]:
    """Return the parts of a picture that are looked at; `edge` is the side of the model's input in
    pixels."""
    short = min(height, width)
    found = [Box(0, 0, 0, width, height)]
    for level in _levels(short, tiles, edge):
        side = max(1, short // level)
        found += [
            Box(level, left, top, left + side, top + side)
            for top in _starts(height, side)
            for left in _starts(width, side)
        ]
    return tuple(found)


def _levels(short: int, tiles: str, edge: int) -> Iterator[int]:
    if tiles.isdecimal():
        yield int(tiles)
    elif tiles == AUTO and short >= LEAST * edge:
        # A square that is hardly larger than the input shows nothing that a larger one hides.
        yield from (level for level in LEVELS if short // level >= 2 * edge or level == LEVELS[0])


def _starts(length: int, side: int) -> list[int]:
    """Return where the squares along a length begin, evenly."""
    steps = math.ceil((length - side) / (side * (1 - OVERLAP)))
    return [round(at * (length - side) / steps) for at in range(steps + 1)] if steps else [0]
