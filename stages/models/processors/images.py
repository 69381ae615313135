"""Prepares images in parts, as a processor takes them."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from artifacts.tiles import LARGE
from stages.models.halves.records import RowCount
from stages.models.processors.blank_clips import Clip
from stages.models.processors.known import known
from stages.models.processors.loading import to_images
from stages.models.processors.side_inputs import Prepared
from stages.models.protocols import Processor

STRIP = 256
"""Approximate number of rows of a very large part that are reduced at once."""
MIN_ROWS = 5
"""Rows from which an array cannot be taken for one whose first axis has the channels."""
TRIED = (2, 500, 700, 3)
"""Shape of the frames on which arrays are compared with images."""
PARTS_AT_ONCE = 16
"""Parts of an image that are copied at the same time."""


def prepare_images(processor: Processor, clip: Clip, prompt: str = "") -> Prepared:
    """Run the processor on each frame of a chunk, without a prompt. The whole processor is called,
    because it may have image settings besides those of its parts."""
    direct = clip.frames.shape[1] >= MIN_ROWS and known(
        processor, "arrays as images", lambda: _takes_arrays(processor)
    )
    images = list(clip.frames) if direct else to_images(clip.frames)
    return _prepared(processor(images=images, return_tensors="pt"), len(clip.frames))


def _takes_arrays(processor: Processor) -> bool:
    """Return whether a processor makes the same of an array as of a PIL image. Making an image of
    1080p, and an array of it again, takes 7 ms while other threads wait."""
    frames = np.random.default_rng(0).integers(0, 255, TRIED, dtype=np.uint8)
    try:
        image, array = (
            dict(processor(images=images, return_tensors="pt"))
            for images in (to_images(frames), list(frames))
        )
        return image.keys() == array.keys() and all(
            torch.equal(image[name], array[name]) for name in image
        )
    except Exception:  # an unusual processor may fail in any way
        return False


def prepare_parts(
    processor: Processor, clip: Clip, boxes: Sequence[tuple[int, int, int, int]]
) -> Prepared:
    """Run the processor on parts of an image, a few at a time. Each box is left, top, right, bottom
    in pixels."""
    frame, prepared = clip.frames[0], []
    for at in range(0, len(boxes), PARTS_AT_ONCE):
        some = boxes[at : at + PARTS_AT_ONCE]
        parts = [frame[top:bottom, left:right] for left, top, right, bottom in some]
        images = [_of_bounded_size(part) for part in parts]
        prepared.append(_prepared(processor(images=images, return_tensors="pt"), len(some)))
    inputs = {name: torch.cat([m.inputs[name] for m in prepared]) for name in prepared[0].inputs}
    count = RowCount(tokens=len(boxes), media=len(boxes))
    return replace(prepared[0], inputs=inputs, count=count)


def _of_bounded_size(part: NDArray[np.uint8]) -> Any:
    """Return a part of an image, reduced by an integer factor if it is very large. A few rows are
    reduced at a time, so that the image library never copies all of it."""
    from PIL import Image

    high, wide = part.shape[:2]
    by = math.ceil(math.sqrt(high * wide / LARGE))
    if by < 2:
        return to_images(part[None])[0]
    rows = by * max(1, STRIP // by)
    strips = (np.ascontiguousarray(part[top : top + rows]) for top in range(0, high, rows))
    small = np.concatenate([np.asarray(Image.fromarray(strip).reduce(by)) for strip in strips])
    # The last row and column may represent fewer pixels than the others.
    inside = (0.0, 0.0, wide / by, high / by)
    size = round(wide / by), round(high / by)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC, box=inside)


def _prepared(outputs: Any, count: int) -> Prepared:
    inputs_of_picture = dict(outputs)
    return Prepared(
        inputs={name: value for name, value in inputs_of_picture.items() if value is not None},
        channel="images",
        side={},
        replacements=(),
        count=RowCount(tokens=count, media=count),
    )
