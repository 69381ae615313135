"""The size at which frames are stored: a limit of pixels, and what a processor needs."""

import math
from dataclasses import dataclass

MAX_PIXELS = 1 << 27
"""Images with more pixels are stored at half their height and width, if possible."""
DIVISORS = (8, 4, 2)
"""Divisors of an image's sides at which a JPEG can be decoded."""
SPARE = 1.5
"""An image is decoded smaller only if it stays this many times larger than the model's input. With
less, vectors differ (docs/log.md)."""
LARGE_EDGE = 1 << 14
"""Pixels of a side that exceeds any model's input."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameFit:
    """The largest frame size that a model's processor uses. Frames are stored no larger, and images
    of the same final size are encoded together."""

    long_edges: tuple[tuple[float, int], ...] = ()
    """(height / width, long edge in pixels), sorted by the first; empty: frames keep their size."""

    shrinks: bool = False
    """Whether an image may be decoded smaller, if the model's input does not change."""

    def divisor(self, height: int, width: int) -> int:
        """Return the divisor of an image's sides during decoding."""
        seen = self.size(height, width)
        return next((by for by in DIVISORS if self.shrinks and _leaves(height, width, by, seen)), 1)

    def stored(self, height: int, width: int) -> tuple[int, int]:
        """Return the stored (height, width) of an image in pixels. It is the original size, so that
        only the model's processor resizes it, unless it may be decoded smaller."""
        if (by := self.divisor(height, width)) > 1:
            return round(height / by), round(width / by)
        return stored_size(height, width)

    @property
    def edge(self) -> int:
        """Return the side in pixels of the model's input for a large square image."""
        return self.size(LARGE_EDGE, LARGE_EDGE)[0]

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) in pixels that the model uses of a frame; never larger than
        the frame."""
        if not self.long_edges:
            return height, width
        aspect = height / width
        edges = self.long_edges
        above = next((i for i, (a, _) in enumerate(edges) if a >= aspect), len(edges) - 1)
        below = above if edges[above][0] <= aspect else max(above - 1, 0)
        (a0, e0), (a1, e1) = edges[below], edges[above]
        share = 0.0 if a1 <= a0 else min(1.0, (aspect - a0) / (a1 - a0))
        scale = min(1.0, math.ceil(e0 + (e1 - e0) * share) / max(height, width))
        return max(1, math.ceil(height * scale)), max(1, math.ceil(width * scale))


def _leaves(height: int, width: int, by: int, seen: tuple[int, int]) -> bool:
    """Return whether an image stays large enough when its sides are divided."""
    return height >= by * SPARE * seen[0] and width >= by * SPARE * seen[1]


def stored_size(height: int, width: int) -> tuple[int, int]:
    """Return the stored (height, width) of an image in pixels: the original size, so that only the
    model's processor resizes it, or half for very large images."""
    if height * width <= MAX_PIXELS:
        return height, width
    return (height + 1) // 2, (width + 1) // 2
