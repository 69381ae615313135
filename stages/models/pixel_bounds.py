"""Computes the size to which a processor resizes video frames between two pixel counts. Imports no
library."""

import math
from dataclasses import dataclass

FEWEST = 2
"""Least limit that is set: processors take none of 0, neither as the most nor, half of it, as the
least. A frame becomes one token at the least, whatever the limit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PixelBounds:
    """The pixel bounds of one video processor, and related settings."""

    side: int
    """Pixels of the side of what becomes one token."""
    least: int
    """Fewest pixels, as the processor counts them."""
    most: int
    """Most pixels, as the processor counts them."""
    times: int = 1
    """How many times it counts the pixels of a frame; 0: those of all frames together."""
    pair: int = 1
    """Frames that become one token at each place."""
    a_frame: int = 0
    """Most pixels of a frame where all count together; 0: no bound."""
    a_video: int = 0
    """Most pixels of all frames together; 0: as the processor has it."""
    beyond: bool = False
    """Whether `a_video` may be more than the processor has."""

    def counted(self, frames: int) -> int:
        """Return how many times the pixels of a frame of so many count."""
        return self.times or round(frames / self.pair) * self.pair

    def edges(self, frames: int) -> tuple[int, int]:
        """Return the least and the most number of pixels, as the processor counts them, for a video
        of so many frames."""
        share = self.a_video / frames if self.a_video else 0
        each = min(filter(None, (self.a_frame, share)), default=0)
        if not each:
            return self.least, self.most
        # An odd number of frames is counted as an even one, which may be more or less.
        limit = int(each * max(1, self.times or min(frames, self.counted(frames))))
        limit = max(FEWEST, limit)
        if not self.beyond:
            limit = min(limit, self.most)
        return below(self.least, limit), limit

    def size(self, frames: int, height: int, width: int) -> tuple[int, int]:
        """Return the height and width to which frames of this size are resized."""
        least, most = self.edges(frames)
        counted, side = self.counted(frames), self.side
        pixels = (self.times or frames) * height * width
        high, wide = (round(length / side) * side for length in (height, width))
        if counted * high * wide > most:
            shrink = math.sqrt(pixels / most)
            high, wide = (
                max(side, math.floor(length / shrink / side) * side) for length in (height, width)
            )
        elif counted * high * wide < least:
            grow = math.sqrt(least / pixels)
            high, wide = (math.ceil(length * grow / side) * side for length in (height, width))
        return high, wide

    def tokens(self, frames: int, height: int, width: int) -> int:
        """Return how many tokens a video of frames of this size becomes."""
        high, wide = self.size(frames, height, width)
        return math.ceil(frames / self.pair) * (high // self.side) * (wide // self.side)


def limits_frames(bounds: PixelBounds, frames: PixelBounds) -> bool:
    """Return whether bounds of `frames` can stand in place of those of a processor: it counts the
    pixels of each frame, and its tokens are as large."""
    return bounds.times > 0 and bounds.side == frames.side


def below(least: int, most: int) -> int:
    """Return a least number of pixels that is below the most: a processor rounds up what it
    enlarges."""
    return least if least <= most else most // 2
