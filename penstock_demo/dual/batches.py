"""Makes training batches for the dual encoder: images, what is true of them, and what each patch
shows.

Half of a batch are twins of the other half: the same images with other colours or other shapes. So
neither can be inferred from the rest.
"""

import math
import random
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from penstock_demo.dual.scenes import Scene, paint_ground, paint_things, sample_scene, twin
from penstock_demo.losses import IGNORE, wear
from penstock_demo.render import Floats, Pixels
from penstock_demo.words import COLOURS, SHAPES

SIDE: Final = 64
"""Side length of an image in pixels, as the model sees it."""
PATCH: Final = 8
"""Side length of a patch in pixels."""
Counts = tuple[tuple[int, ...], tuple[int, ...]]
"""Numbers of things in an image, and the weight of each number."""
FEW: Final[Counts] = ((0, 1, 2, 3), (8, 60, 22, 10))
MANY: Final[Counts] = ((1, 2, 3, 4, 5), (1, 2, 3, 3, 2))
NAMELESS_SHARE: Final = 0.15
"""Share of things whose colour has no name, and of those whose shape has none."""
CUT_SHARE: Final = 0.06
"""Share of things that lie across the edge."""
SQUEEZED_SHARE: Final = 0.3
"""Share of images that are squeezed into the square, from 9:16 to 16:9."""
SHOWN, HINTED = 0.15, 0.02
"""Share of a patch that a thing must cover to count, and below which the patch counts as empty."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageBatch:
    """Images with what is known of them."""

    pixels: Pixels
    """(image, SIDE, SIDE, 3)."""
    scenes: list[Scene]
    """One per image."""
    classes: npt.NDArray[np.int64]
    """(2, image, row, column): colour and shape in each patch; 0 for nothing, `IGNORE` if it has no
    name."""


def make_image_batch(
    rng: random.Random,
    noise: npt.NDArray[np.float32],
    count: int,
    radius: tuple[float, float],
    counts: Counts = FEW,
) -> ImageBatch:
    """Make a batch of `count` images with things between these radii."""
    scenes: list[Scene] = []
    while len(scenes) < count:
        squeezed = rng.random() < SQUEEZED_SHARE
        things = rng.choices(*counts)[0]
        aspect = math.exp(rng.uniform(-0.58, 0.58)) if squeezed else 1.0
        square = sample_scene(
            rng, things, radius=radius, nameless=NAMELESS_SHARE, cut=CUT_SHARE, grounds=True
        )
        scene = replace(square, aspect=aspect)
        scenes += [scene, twin(rng, scene)]
    pixels = np.empty((count, SIDE, SIDE, 3), np.uint8)
    side = SIDE // PATCH
    classes = np.zeros((2, count, side, side), np.int64)
    for index, scene in enumerate(scenes[:count]):
        image = paint_ground(scene, SIDE, SIDE)
        cover = np.zeros((len(scene.things), SIDE, SIDE), np.float32)
        paint_things(scene, image, cover)
        pixels[index] = wear(rng, np.clip(image, 0, 255).astype(np.uint8)[None], noise)[0]
        if scene.things:
            _label(scene, cover, classes[:, index])
    return ImageBatch(pixels=pixels, scenes=scenes[:count], classes=classes)


def _label(scene: Scene, cover: Floats, classes: npt.NDArray[np.int64]) -> None:
    side = SIDE // PATCH
    share = cover.reshape(-1, side, PATCH, side, PATCH).mean((2, 4))
    owner, share_of_owner = share.argmax(0), share.max(0)
    for index, thing in enumerate(scene.things):
        mine = (owner == index) & (share_of_owner >= SHOWN)
        classes[0][mine] = 1 + COLOURS.index(thing.colour) if thing.colour else IGNORE
        classes[1][mine] = (
            1 + SHAPES.index(thing.shape) if thing.shape and not thing.is_cut else IGNORE
        )
    classes[:, (share_of_owner > HINTED) & (share_of_owner < SHOWN)] = IGNORE
