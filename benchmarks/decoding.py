"""Reading large JPEG files: as everyone does with Pillow, and at a part of their sides.

Prints CPU milliseconds a 4K picture until it is as small as a model sees it, both ways in one run,
their ratio and the bytes that are stored; then how near the vectors of pictures decoded so are to
those of the whole pictures, centred, by the demo's dual encoder or another.
`python -m benchmarks.decoding [--model FOLDER] [--pictures N] [--edge PIXELS]`
"""

import argparse
import math
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from artifacts.schema import SPARE, FrameFit
from benchmarks._common import cpu_seconds
from penstock_demo import DUAL_CHECKPOINT
from stages.frames.image import read_image
from stages.models.halves.load import load_half
from stages.models.halves.vectors import image_vectors
from stages.models.processors.loading import load_processor

FOUR_K = (2160, 3840)
ROUNDS = 12
QUALITY = 92


def write_jpeg(path: Path, size: tuple[int, int], seed: int) -> Path:
    """Write a picture of soft and hard edges of every size, and some noise."""
    draw = np.random.default_rng(seed)
    high, wide = size
    pixels: NDArray[np.float32] = np.zeros((*size, 3), np.float32)
    for grain in (4, 16, 64):
        small = draw.uniform(0, 255, (high // grain + 2, wide // grain + 2, 3)).astype(np.uint8)
        large = Image.fromarray(small).resize((wide, high), Image.Resampling.BICUBIC)
        pixels += np.asarray(large, np.float32) * (grain / 84)
    rows, columns = np.mgrid[:high, :wide]
    for _ in range(draw.integers(2, 9)):
        radius = draw.uniform(0.02, 0.2) * high
        inside = (rows - draw.uniform(0, high)) ** 2 + (columns - draw.uniform(0, wide)) ** 2
        pixels[inside < radius**2] = draw.uniform(0, 255, 3)
    pixels += draw.normal(0, 3, pixels.shape)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=QUALITY)
    return path


def seconds_each(read: Callable[[], object]) -> float:
    """Return the median CPU seconds of a reading."""
    return statistics.median(cpu_seconds(read) for _ in range(ROUNDS))


def time_reading(folder: Path, edge: int) -> None:
    """Print what reading one picture takes until its short side has `edge` pixels."""
    path = write_jpeg(folder / "large.jpg", FOUR_K, 0)
    high, wide = FOUR_K
    small = (round(wide * edge / high), edge)
    fit = FrameFit(long_edges=((high / wide, small[0]),), shrinks=True)

    def plain() -> None:
        with Image.open(path) as image:
            image.convert("RGB").resize(small, Image.Resampling.BICUBIC)

    def ours() -> None:
        pixels = read_image(path, fit)[1].pixels[0]
        Image.fromarray(pixels).resize(small, Image.Resampling.BICUBIC)

    before, after = seconds_each(plain), seconds_each(ours)
    stored = fit.stored(*FOUR_K)
    print(
        f"a 4K JPEG to {edge}: Pillow {before * 1e3:.0f} ms, here {after * 1e3:.0f} ms of CPU: "
        f"ratio {before / after:.2f}; stored at {stored[1]}x{stored[0]}, "
        f"{high * wide / np.prod(stored):.0f} times less"
    )


def compare_vectors(folder: Path, model: Path, pictures: int) -> None:
    """Print the centred cosines of vectors of pictures, decoded at a part of their sides and
    whole."""
    processor, half = load_processor(model, generates=False), load_half(model, "vision")
    edge = int(half.config.vision_config.image_size)
    for by in (2, 4, 8):
        high = math.ceil(edge * by * SPARE) + 1  # as near to the limit as may be
        sizes = [(high + at % by, round(high * 16 / 9) + at // by % by) for at in range(pictures)]
        read = [
            both_ways(write_jpeg(folder / "p.jpg", size, seed), edge)
            for seed, size in enumerate(sizes)
        ]
        whole, divided = (vectors_of(half, processor, way) for way in zip(*read, strict=True))
        mean = whole.mean(dim=0)
        near = torch.cosine_similarity(whole - mean, divided - mean)
        print(
            f"sides divided by {by}: centred cosine {near.mean():.5f} over {pictures} pictures, "
            f"least {near.min():.5f}"
        )


def both_ways(path: Path, edge: int) -> tuple[Any, Any]:
    """Return one picture read whole, and read as small as it may be."""
    pixels = read_image(path)[1].pixels[0]
    high, wide = pixels.shape[:2]
    long = round(wide * edge / high)
    fit = FrameFit(long_edges=((high / wide, long),), shrinks=True)
    return Image.fromarray(pixels), Image.fromarray(read_image(path, fit)[1].pixels[0])


def vectors_of(half: Any, processor: Any, pictures: Sequence[Any]) -> torch.Tensor:
    """Return the vectors of pictures, 16 at a time."""
    some = [list(pictures[at : at + 16]) for at in range(0, len(pictures), 16)]
    made = [image_vectors(half, processor(images=each, return_tensors="pt")) for each in some]
    return torch.cat(made).float()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=DUAL_CHECKPOINT)
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--edge", type=int, default=224)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        time_reading(Path(folder), given.edge)
        compare_vectors(Path(folder), given.model, given.pictures)


if __name__ == "__main__":
    main()
