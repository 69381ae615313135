"""One chunk of a video, or one image, as it is stored. Imports no PyAV."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from artifacts.schema import ChunkIndex


@dataclass(frozen=True, kw_only=True, slots=True)
class Damage:
    """The faults found while decoding one chunk. They are stored with the chunk for a resumed
    run."""

    missed: tuple[float, ...] = ()
    """Seconds of requested frames that could not be decoded."""
    damaged: tuple[float, ...] = ()
    """Seconds of frames that the decoder marked as damaged."""
    passed_over: bool = False
    """Whether packets could not be decoded. Their number depends on where decoding began."""


NO_DAMAGE = Damage()


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """One chunk, ready to be stored."""

    index: ChunkIndex
    """Its interval, times and size."""
    pixels: NDArray[np.uint8]
    """RGB, [frames, height, width, 3]."""
    damage: Damage = NO_DAMAGE
    """Faults found while decoding it."""

    def __post_init__(self) -> None:
        assert self.pixels.shape == (len(self.index.times), self.index.height, self.index.width, 3)
