"""Reads the media of a data set: their size, rate and number of frames, and whether they show
anything."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from artifacts.disk.stamps import Stamp, stamp_of
from artifacts.errors import MediaError
from artifacts.frame_fit import FrameFit
from flows.outputs.seen.sets import Fault, TrainedSample
from flows.outputs.thumbnails import shown_at
from stages.process.host_memory import cores

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ONE_COLOUR = 8
"""Range of grey levels, of 255, below which a picture is one colour."""
SAMPLE = 32
"""Side of the small picture that is looked at for that."""
SMALL_FIT = FrameFit(long_edges=((1.0, SAMPLE),), shrinks=True)
"""Size at which it is decoded."""


def look_at(samples: Sequence[TrainedSample]) -> None:
    """Read size, rate and number of frames of each sample, and add the faults of what is seen."""
    with ThreadPoolExecutor(cores()) as pool:
        for _ in pool.map(_look, samples):
            pass


class _Look(NamedTuple):
    """What is seen of a medium."""

    size: tuple[int, int]
    greys: tuple[int, int]
    """Least and largest grey level."""
    rate: float = 0.0
    frames: int = 1


def _look(sample: TrainedSample) -> None:
    try:
        look = _look_at(sample.path, sample.kind, stamp_of(sample.path))
    except (MediaError, OSError, ValueError) as error:
        message = getattr(error, "message", str(error))
        sample.faults.append(Fault(rule="unreadable", text=f"it cannot be opened: {message}"))
        return
    sample.size, sample.rate, sample.frames = look.size, look.rate, look.frames
    if look.greys[1] - look.greys[0] < ONE_COLOUR:
        what = "its first frame" if sample.kind == "video" else "it"
        sample.faults.append(Fault(rule="one colour", text=f"{what} is one colour"))


@lru_cache(maxsize=1 << 16)
def _look_at(path: Path, kind: str, _: Stamp) -> _Look:
    """Return what is seen of a medium: of a video, of its first frame. A review asks again after
    each edit, and opens no medium that is as it was."""
    from stages.frames.frame_converter import FrameConverter, shown_size
    from stages.frames.image import read_image
    from stages.frames.media_opening import rate_and_frames

    if kind != "video":
        media, chunk = read_image(path, SMALL_FIT)
        return _Look(size=(media.width, media.height), greys=_range(chunk.pixels[0]))
    rate, frames = rate_and_frames(path)
    frame, aspect = shown_at(path, 0.0)
    height, width = shown_size(frame, aspect)
    pixels = FrameConverter(frame, SMALL_FIT.size(height, width)).convert(frame)
    return _Look(size=(width, height), greys=_range(pixels), rate=rate, frames=frames)


def _range(pixels: "NDArray[np.generic]") -> tuple[int, int]:
    """Return the least and the largest grey level of a picture that was made small."""
    import numpy as np
    from PIL import Image

    grey = np.asarray(Image.fromarray(pixels).convert("L").resize((SAMPLE, SAMPLE)))
    return int(grey.min()), int(grey.max())
