"""Writes JPEG images from a seed, with their labels in `truth.jsonl`: `python -m
penstock_demo.dual.pictures FOLDER --kind trained`.
"""

import argparse
import itertools
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from penstock_demo.dual.scenes import (
    PAIRS,
    TRAINED,
    Scene,
    paint_ground,
    paint_things,
    sample_scene,
)
from penstock_demo.words import BACKGROUNDS, COLOURS, NEVER_TRAINED, SHAPES

ENDS: Final = (0, *itertools.accumulate(map(len, (TRAINED, COLOURS, SHAPES, BACKGROUNDS))))
GROUPS: Final = tuple(itertools.starmap(slice, itertools.pairwise(ENDS)))
"""Positions of the texts of pairs, colours, shapes and grounds. A choice is made in each."""


QUALITY: Final = 90
NEVER: Final = tuple(sorted(NEVER_TRAINED))
RADIUS: Final = (6.0, 18.0)
"""Radius in units: a tenth to more than a quarter of an image's side."""
SMALL_PIXELS: Final = (55.0, 110.0)
"""Radius of a thing in a large image in pixels: invisible once reduced to the model's input."""
LARGE: Final = (2160, 3840)
"""Height and width of a large image."""
ENLARGED: Final = 4
"""Factor by which the ground of a large image is enlarged: it is as coarse as a film's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageTruth:
    """The truth about one image."""

    file: str
    """Name within its folder."""
    labels: list[str]
    """Colour and shape of each thing."""
    places: list[tuple[float, float, float]]
    """Centre and radius of each thing in pixels."""


def _one(rng: random.Random, pairs: Sequence[tuple[str, str]], count: int = 1) -> Scene:
    aspect = rng.choice((1.0, 1.0, 4 / 3, 3 / 4, 16 / 9, 9 / 16))
    return replace(sample_scene(rng, count, pairs, RADIUS), aspect=aspect)


def _small(rng: random.Random) -> Scene:
    height, width = LARGE
    unit = (height * width) ** 0.5 / 64
    low, high = (pixels / unit for pixels in SMALL_PIXELS)
    scene = sample_scene(rng, 1, PAIRS, (low, high))
    return replace(scene, zoom=1.0, aspect=width / height)


KINDS: Final[Mapping[str, Callable[[random.Random], Scene]]] = {
    "trained": lambda rng: _one(rng, TRAINED),
    "never": lambda rng: _one(rng, NEVER),
    "several": lambda rng: _one(rng, PAIRS, rng.choice((1, 1, 2, 3))),
    "small": _small,
}
"""One thing of a trained pair, of an untrained pair, one to three things of any pair, and one small
thing in a large image."""


def _pixels(scene: Scene, rng: random.Random, is_large: bool) -> Image.Image:
    if is_large:
        height, width = LARGE
        coarse = paint_ground(scene, height // ENLARGED, width // ENLARGED)
        ground = Image.fromarray(coarse.astype(np.uint8))
        image = np.asarray(ground.resize((width, height), Image.Resampling.BICUBIC), np.float32)
        image = image.copy()
    else:
        area = rng.uniform(90, 360) ** 2
        height = round((area / scene.aspect) ** 0.5)
        image = paint_ground(scene, height, round(height * scene.aspect))
    paint_things(scene, image)
    grain = np.random.RandomState(rng.randrange(1 << 30)).randn(*image.shape[:2], 1)
    return Image.fromarray(np.clip(image + 3 * grain, 0, 255).astype(np.uint8))


def write_images(folder: Path, kind: str, count: int, seed: int) -> list[ImageTruth]:
    """Write images of a kind of `KINDS` and their `truth.jsonl`; the same seed gives the same."""
    folder.mkdir(parents=True, exist_ok=True)
    truths = list(_written(folder, kind, count, random.Random(f"{kind} {seed}")))
    lines = [json.dumps(asdict(truth)) + "\n" for truth in truths]
    (folder / "truth.jsonl").write_text("".join(lines), encoding="utf-8")
    return truths


def _written(folder: Path, kind: str, count: int, rng: random.Random) -> Iterator[ImageTruth]:
    for number in range(1, count + 1):
        scene = KINDS[kind](rng)
        image = _pixels(scene, rng, kind == "small")
        name = f"{kind}-{number:04d}.jpg"
        image.save(folder / name, quality=QUALITY)
        unit = (image.width * image.height) ** 0.5 / 64
        yield ImageTruth(
            file=name,
            labels=[" ".join(thing.pair) for thing in scene.things],
            places=[
                (thing.x * image.width, thing.y * image.height, thing.radius * unit)
                for thing in scene.things
            ],
        )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m penstock_demo.dual.pictures", description=__doc__
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kind", choices=KINDS, default="several")
    parser.add_argument("--count", type=int, default=12)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args(arguments)
    write_images(chosen.folder, chosen.kind, chosen.count, chosen.seed)


if __name__ == "__main__":
    main()
