"""Reads the media of a data set: their size, rate and number of frames, and whether they show
anything."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

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


def _look(sample: TrainedSample) -> None:
    try:
        low, high = _look_at_video(sample) if sample.kind == "video" else _look_at_image(sample)
    except (MediaError, OSError, ValueError) as error:
        message = getattr(error, "message", str(error))
        sample.faults.append(Fault(rule="unreadable", text=f"it cannot be opened: {message}"))
        return
    if high - low < ONE_COLOUR:
        what = "its first frame" if sample.kind == "video" else "it"
        sample.faults.append(Fault(rule="one colour", text=f"{what} is one colour"))


def _look_at_image(sample: TrainedSample) -> tuple[int, int]:
    """Return the least and the largest grey level of an image."""
    from stages.frames.image import read_image

    media, chunk = read_image(sample.path, SMALL_FIT)
    sample.size = media.width, media.height
    return _range(chunk.pixels[0])


def _look_at_video(sample: TrainedSample) -> tuple[int, int]:
    """Return the least and the largest grey level of the first frame of a video."""
    from stages.frames.frame_converter import FrameConverter, shown_size
    from stages.frames.media_opening import rate_and_frames

    sample.rate, sample.frames = rate_and_frames(sample.path)
    frame, aspect = shown_at(sample.path, 0.0)
    height, width = shown_size(frame, aspect)
    sample.size = width, height
    return _range(FrameConverter(frame, SMALL_FIT.size(height, width)).convert(frame))


def _range(pixels: "NDArray[np.generic]") -> tuple[int, int]:
    """Return the least and the largest grey level of a picture that was made small."""
    import numpy as np
    from PIL import Image

    grey = np.asarray(Image.fromarray(pixels).convert("L").resize((SAMPLE, SAMPLE)))
    return int(grey.min()), int(grey.max())
