"""Computes the size to which a video processor resizes frames, within its bounds of pixels."""

import math
from dataclasses import dataclass

FEWEST = 2
"""Lowest limit that is set. Processors accept 0 neither as maximum nor, halved, as minimum. A frame
becomes at least one token, whatever the limit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PixelBounds:
    """The pixel bounds of one video processor, and related settings."""

    side: int
    """Side length in pixels of the square that becomes one token."""
    least: int
    """Minimum pixels, as the processor counts them."""
    most: int
    """Maximum pixels, as the processor counts them."""
    times: int = 1
    """How many times the processor counts the pixels of a frame; 0: it counts all frames
    together."""
    pair: int = 1
    """Frames that become one token at each place (temporal patch size)."""
    per_frame: int = 0
    """Maximum pixels per frame if all frames are counted together; 0: no bound."""
    per_video: int = 0
    """Maximum pixels of all frames together; 0: the processor's own limit."""
    beyond: bool = False
    """Whether a limit of pixels that a run gives may exceed the processor's own limit."""

    def counted(self, frames: int) -> int:
        """Return how many times the pixels of a frame count in a video of `frames` frames."""
        return self.times or round(frames / self.pair) * self.pair

    def edges(self, frames: int) -> tuple[int, int]:
        """Return the minimum and maximum pixels, as the processor counts them, for a video of
        `frames` frames."""
        share = self.per_video / frames if self.per_video else 0
        per_frame = min(filter(None, (self.per_frame, share)), default=0)
        if not per_frame:
            return self.least, self.most
        # An odd number of frames is counted as an even one, which may be higher or lower.
        limit = int(per_frame * max(1, self.times or min(frames, self.counted(frames))))
        limit = max(FEWEST, limit)
        if not self.beyond:
            limit = min(limit, self.most)
        return below(self.least, limit), limit

    def size(self, frames: int, height: int, width: int) -> tuple[int, int]:
        """Return the height and width to which the processor resizes frames of this size."""
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
        """Return the number of tokens of a video with frames of this size."""
        high, wide = self.size(frames, height, width)
        return math.ceil(frames / self.pair) * (high // self.side) * (wide // self.side)


def limits_frames(bounds: PixelBounds, frames: PixelBounds) -> bool:
    """Return whether the bounds `frames` can replace those of a processor: it counts the pixels of
    each frame, and its tokens cover the same area."""
    return bounds.times > 0 and bounds.side == frames.side


def below(least: int, most: int) -> int:
    """Return a minimum pixel count that is below the maximum: a processor rounds up when it
    enlarges."""
    return least if least <= most else most // 2
