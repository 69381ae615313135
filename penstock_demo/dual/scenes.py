"""Draws single images of the demo's world: a few things on a ground, at any size.

Lengths are in units of 1/64 of the square root of the image's area.
"""

import functools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from PIL import Image, ImageDraw

from penstock_demo.render import (
    OVERSAMPLING,
    PAINT,
    Floats,
    Pixels,
    coverage_of,
    ground,
    placed,
    sprite,
    stepped,
)
from penstock_demo.words import BACKGROUNDS, COLOURS, NEVER_TRAINED, SHAPES

Pair = tuple[str, str]
"""A colour and a shape."""
PAIRS: Final = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)
TRAINED: Final = tuple(pair for pair in PAIRS if pair not in NEVER_TRAINED)
GROUND_SEEDS: Final = {1.0: 200, 1.5: 120, 2.0: 80, 4.0: 16, 8.0: 6}
"""Zoom of a ground → how many different ones there are: they are kept in memory."""
FAR: Final = 60.0
"""Minimum distance of a nameless colour from named ones, in steps of red, green and blue."""
SHADE: Final = 14.0
"""Maximum deviation of a shade from its named colour in red, green and blue."""
NAMELESS: Final = (
    ((-1, -0.28), (1, -0.28), (1, 0.28), (-1, 0.28)),
    ((-0.28, -1), (0.28, -1), (0.28, 1), (-0.28, 1)),
    ((-1, -0.6), (-0.6, -1), (1, 0.6), (0.6, 1)),
    ((-0.9, -0.9), (-0.3, -0.9), (-0.3, 0.3), (0.9, 0.3), (0.9, 0.9), (-0.9, 0.9)),
    ((-1, 0.2), (0, -0.8), (1, 0.2), (1, 0.8), (0, -0.1), (-1, 0.8)),
    ((-0.4, -1), (0.4, -1), (1, 1), (-1, 1)),
)
"""Shapes without a name, as corners right of and below the centre."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Placed:
    """One coloured shape in an image."""

    colour: str
    """One of `COLOURS`, or empty for a colour without a name."""
    shape: str
    """One of `SHAPES`, or empty for a shape without a name."""
    paint: tuple[float, float, float]
    """Red, green and blue."""
    outline: int
    """Index in `NAMELESS` for a shape without a name."""
    x: float
    """Centre, as a share of the width."""
    y: float
    """Centre, as a share of the height."""
    radius: float
    """In units."""
    is_cut: bool = False
    """Whether so much of it lies outside that its shape cannot be recognized."""

    @property
    def pair(self) -> Pair:
        return self.colour, self.shape


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """The full description of one image."""

    ground: str
    """One of `BACKGROUNDS`."""
    seed: int
    """Seed of the ground."""
    zoom: float
    """Ratio of the ground's size to the image's."""
    window: tuple[float, float]
    """Place of the image in its ground, as shares of the remaining space."""
    aspect: float
    """Width over height of the content, before it is squeezed."""
    things: tuple[Placed, ...]


def _shade(rng: random.Random, colour: str) -> tuple[float, float, float]:
    red, green, blue = (
        min(max(value + rng.uniform(-SHADE, SHADE), 0.0), 255.0) for value in PAINT[colour]
    )
    return red, green, blue


def _nameless_paint(rng: random.Random) -> tuple[float, float, float]:
    while True:
        paint = rng.uniform(0, 255), rng.uniform(0, 255), rng.uniform(0, 255)
        if all(math.dist(paint, named) >= FAR for named in PAINT.values()):
            return paint


def sample_thing(
    rng: random.Random,
    pairs: Sequence[Pair],
    radius: tuple[float, float],
    *,
    nameless: float = 0.0,
    cut: float = 0.0,
) -> Placed:
    """Draw one thing. Shares `nameless` have a colour without name or a shape without name; a share
    `cut` lies across an edge."""
    size = math.exp(rng.uniform(*map(math.log, radius)))
    share = size / 64
    x, y = rng.uniform(0.6 * share, 1 - 0.6 * share), rng.uniform(0.6 * share, 1 - 0.6 * share)
    is_cut = rng.random() < cut
    if is_cut:
        off = rng.uniform(-0.6, 0.35) * share
        x, y = rng.choice(((off, y), (1 - off, y), (x, off), (x, 1 - off)))
    colour, shape = rng.choice(pairs)
    way = rng.random()
    if way < nameless:
        colour = ""
    elif way < 2 * nameless:
        shape = ""
    return Placed(
        colour=colour,
        shape=shape,
        paint=_shade(rng, colour) if colour else _nameless_paint(rng),
        outline=rng.randrange(len(NAMELESS)),
        x=x, y=y, radius=size, is_cut=is_cut,
    )  # fmt: skip


def sample_scene(
    rng: random.Random,
    count: int,
    pairs: Sequence[Pair] = TRAINED,
    radius: tuple[float, float] = (4.5, 18.0),
    *,
    nameless: float = 0.0,
    cut: float = 0.0,
    grounds: bool = False,
) -> Scene:
    """Draw a square image of `count` things that do not touch, fewer if there is no room. With
    `grounds`, it uses one of few grounds."""
    things: list[Placed] = []
    for _ in range(20 * count):
        if len(things) == count:
            break
        new = sample_thing(rng, pairs, radius, nameless=nameless, cut=cut)
        if all(_apart(new, old) for old in things):
            things.append(new)
    zoom = rng.choice(list(GROUND_SEEDS))
    return Scene(
        ground=rng.choice(BACKGROUNDS),
        seed=rng.randrange(GROUND_SEEDS[zoom] if grounds else 1 << 30),
        zoom=zoom,
        window=(rng.random(), rng.random()),
        aspect=1.0,
        things=tuple(things),
    )


def _apart(one: Placed, other: Placed) -> bool:
    # Squeezed into a square, a thing is at most a third longer than its radius.
    return math.hypot(one.x - other.x, one.y - other.y) * 64 > 1.35 * (one.radius + other.radius)


def twin(rng: random.Random, scene: Scene, pairs: Sequence[Pair] = TRAINED) -> Scene:
    """Return the same image with other colours, or with other shapes; pairs stay among these."""
    swaps_colour = rng.random() < 0.5
    return replace(
        scene, things=tuple(_swapped(rng, thing, pairs, swaps_colour) for thing in scene.things)
    )


def _swapped(rng: random.Random, thing: Placed, pairs: Sequence[Pair], colours: bool) -> Placed:
    if not thing.colour or not thing.shape:
        return thing
    if colours:
        colour = rng.choice([c for c, s in pairs if s == thing.shape])
        return replace(thing, colour=colour, paint=_shade(rng, colour))
    return replace(thing, shape=rng.choice([s for c, s in pairs if c == thing.colour]))


@functools.lru_cache(maxsize=1200)
def _kept_ground(kind: str, seed: int, height: int, width: int) -> Pixels:
    return ground(kind, np.random.RandomState(seed), height, width)


def paint_ground(scene: Scene, height: int, width: int) -> Floats:
    """Return the ground alone, (height, width, 3)."""
    tall, wide = round(height * scene.zoom), round(width * scene.zoom)
    whole = _kept_ground(scene.ground, scene.seed, tall, wide)
    left, top = (int(scene.window[0] * (wide - width)), int(scene.window[1] * (tall - height)))
    return whole[top : top + height, left : left + width].astype(np.float32)


@functools.lru_cache(maxsize=20_000)
def _nameless_sprite(outline: int, radius_x: float, radius_y: float, x: float, y: float) -> Floats:
    half = math.ceil(max(radius_x, radius_y)) + 1
    side = 2 * half + 1
    image = Image.new("L", (side * OVERSAMPLING, side * OVERSAMPLING), 0)
    corners = [
        ((half + x + 0.5 + radius_x * right) * OVERSAMPLING,
         (half + y + 0.5 + radius_y * down) * OVERSAMPLING)
        for right, down in NAMELESS[outline]
    ]  # fmt: skip
    ImageDraw.Draw(image).polygon(corners, 255)
    return coverage_of(image, side)


def paint_things(scene: Scene, image: Floats, cover: Floats | None = None) -> None:
    """Draw the things into an image. The share of each pixel that they cover goes into `cover`,
    (thing, height, width)."""
    height, width, _ = image.shape
    for index, thing in enumerate(scene.things):
        stretch = math.sqrt(scene.aspect)
        radius_x = max(stepped(thing.radius / 64 * width / stretch, 0.5), 1.0)
        radius_y = max(stepped(thing.radius / 64 * height * stretch, 0.5), 1.0)
        x, y = stepped(thing.x * width - 0.5, 0.5), stepped(thing.y * height - 0.5, 0.5)
        left, top = math.floor(x), math.floor(y)
        if thing.shape:
            mask = sprite(thing.shape, radius_x, radius_y, x - left, y - top)
        else:
            mask = _nameless_sprite(thing.outline, radius_x, radius_y, x - left, y - top)
        mask, place_in = placed(mask, left, top, height, width)
        under = image[place_in]
        image[place_in] = under + mask[..., None] * (np.array(thing.paint, np.float32) - under)
        if cover is not None:
            cover[index][place_in] = mask
