"""Pixels of a video as CogVLM2 was shown them. Knows neither tokens nor models.

They are normalized, the shorter side is brought to the size by plain bilinear interpolation, and
the middle is cut out. Nothing smooths a large frame that is made small, as it would elsewhere.
"""

import math
from typing import Any

import numpy as np
import torch
from torch.nn import functional

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
"""Those of CLIP."""
WHITE = 255


def of_video(frames: Any, side: int) -> torch.Tensor:
    """Return a video's frames, each [height, width, 3] of bytes, as [frames, 3, side, side]."""
    return torch.stack([_of_frame(np.asarray(frame), side) for frame in frames])


def _of_frame(frame: np.ndarray[Any, Any], side: int) -> torch.Tensor:
    # One by one: all frames of a chunk in 32 bit would be gigabytes.
    pixels = (torch.tensor(frame).permute(2, 0, 1).float() / WHITE - MEAN) / STD
    height, width = size = _scaled(frame.shape[0], frame.shape[1], side)
    pixels = functional.interpolate(pixels[None], size, mode="bilinear", align_corners=False)[0]
    top, left = round((height - side) / 2), round((width - side) / 2)
    return pixels[:, top : top + side, left : left + side]


def _scaled(height: int, width: int, side: int) -> tuple[int, int]:
    """Return (height, width) in pixels with the shorter one brought to `side`."""
    if height <= width:
        return side, math.floor(width / height * side)
    return math.floor(height / width * side), side
