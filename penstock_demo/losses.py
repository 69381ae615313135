"""Makes training batches, and computes the losses besides that of the caption.

A batch is clips of one grid and frame count, as frames, captions and dense labels. Frames are
drawn, then degraded as a codec would.

The losses cover what each vision token shows and where it moves. Their heads are discarded after
training.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from penstock_demo.render import Floats, Painter, Pixels
from penstock_demo.tracks import place
from penstock_demo.words import BACKGROUNDS, COLOURS, DIRECTIONS, SHAPES, SIZES
from penstock_demo.world import ClipSpec, caption, sample_clip, sample_still

CELL: Final = 16
"""Side length in pixels of a merged vision token."""
IGNORE: Final = -100
"""A label that the losses ignore."""
FRAMES_PER_BATCH: Final = 288
IMAGE_SHARE: Final = 0.1
"""Share of batches that are single images."""
GRIDS: Final = {
    (4, 4): ((1.0,), (0.97, 1.0)),
    (3, 4): ((4 / 3,), (1.05, 1.55)),
    (4, 3): ((3 / 4,), (0.65, 0.95)),
    (3, 5): ((16 / 9,), (1.57, 1.77)),
    (5, 3): ((9 / 16,), (0.565, 0.637)),
}
"""Rows and columns of tokens → the usual aspects of such sources, and their range."""
_GRID_WEIGHTS: Final = (30, 20, 15, 20, 15)
MOTION_TARGETS: Final = 4
"""Motion values per cell: centre of its shape in the cell, and its movement between two frames."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Clips of one grid and frame count."""

    frames: Pixels
    """(clip, time, height, width, 3); the number of times is even."""
    captions: list[str]
    """One per clip."""
    classes: npt.NDArray[np.int64]
    """(clip, 3, patch, row, column): colour, shape and size in each cell; 0 for nothing."""
    motion: Floats
    """(clip, MOTION_TARGETS, patch, row, column); NaN where unknown."""
    backgrounds: npt.NDArray[np.int64]
    """(clip,) index into `BACKGROUNDS`."""
    seconds_per_patch: list[float] | None
    """Seconds per patch that the processor would state for each clip; None for images."""


def sample_times(rng: random.Random, count: int) -> list[float]:
    """Return evenly spaced fractions of a clip, chosen like a sampler's and snapped to whole
    frames."""
    way, offset = rng.random(), 0.0
    if way < 0.3:
        step = 1 / count
    elif way < 0.45:
        step, offset = 1 / count, 0.5 / count
    elif way < 0.55:
        step = 0.999 / (count - 1)
    else:
        step = 1 / (count + rng.uniform(-0.95, 0.9))
        if rng.random() < 0.3:
            offset = rng.uniform(0, 1 - (count - 1) * step)
    frames = rng.randint(max(24, count), 240)
    return [
        min(int((offset + index * step) * frames + 1e-6), frames - 1) / frames
        for index in range(count)
    ]


def is_readable(spec: ClipSpec, times: Sequence[float]) -> bool:
    """Return whether these frames show enough of every action to recognize it."""
    for track in spec.tracks:
        for instant in (track.appears_at, track.vanishes_at):
            if 0 <= instant <= 1 and not times[0] < instant <= times[-1]:
                return False
        for leg in track.legs:
            spent = [min(max(time, leg.start), leg.end) for time in (times[0], times[-1])]
            seen = sum(leg.start - 0.1 <= time <= leg.end + 0.1 for time in times)
            if spent[1] - spent[0] < 0.6 * (leg.end - leg.start) or seen < 2:
                return False
    return True


def sample_seconds(rng: random.Random, count: int) -> float:
    """Return the seconds that a patch of two frames spans. They vary as much as clips, samplers and
    careless callers do."""
    way = rng.random()
    if way < 0.6:
        seconds = (count + rng.uniform(-0.9, 0.9)) / 2
        if count == 4:
            seconds = rng.uniform(0.8, 2.6)
        elif count == 16:
            seconds = 7.6 * math.exp(rng.uniform(0, 1.8))
        return 2 * seconds / count
    if way < 0.7:
        return 1.0
    if way < 0.82:
        return 2 / 24
    return 2 * math.exp(rng.uniform(math.log(0.1), math.log(3.0)))


def _labels(
    spec: ClipSpec, painter: Painter, times: Sequence[float], cover: Floats
) -> tuple[npt.NDArray[np.int64], Floats]:
    things, count, height, width = cover.shape
    patches, rows, columns = count // 2, height // CELL, width // CELL
    share = cover.reshape(things, patches, 2, rows, CELL, columns, CELL).mean((4, 6)).max(2)
    owner, largest_share = share.argmax(0), share.max(0)
    classes = np.zeros((3, patches, rows, columns), np.int64)
    motion = np.full((MOTION_TARGETS, patches, rows, columns), np.nan, np.float32)
    across = (np.arange(columns) + 0.5)[None, :] * CELL
    down = (np.arange(rows) + 0.5)[:, None] * CELL
    for index, (thing, track) in enumerate(zip(spec.sentence.things, spec.tracks, strict=True)):
        mine = (owner == index) & (largest_share >= 0.08)
        classes[0][mine] = 1 + COLOURS.index(thing.colour)
        classes[1][mine] = 1 + SHAPES.index(thing.shape)
        classes[2][mine] = 1 + SIZES.index(thing.size)
        for patch in range(patches):
            places = [place(track, time) for time in times[2 * patch : 2 * patch + 2]]
            if not all(seen for _, _, seen in places):
                continue
            (ax, ay), (bx, by) = (
                (x * painter.scale[0], y * painter.scale[1]) for x, y, _ in places
            )
            cells = mine[patch]
            motion[0, patch][cells] = (((ax + bx) / 2 - across) / CELL + 0 * down)[cells]
            motion[1, patch][cells] = (((ay + by) / 2 - down) / CELL + 0 * across)[cells]
            motion[2, patch][cells], motion[3, patch][cells] = (bx - ax) / 2, (by - ay) / 2
    classes[:, (largest_share > 0.02) & (largest_share < 0.08)] = IGNORE
    return classes, motion


def wear(rng: random.Random, frames: Pixels, noise: npt.NDArray[np.float32]) -> Pixels:
    """Halve the colour resolution, blur, add grain and gain, each for some clips, as codecs do."""
    count, height, width, _ = frames.shape
    worn: npt.NDArray[np.floating[Any]] = frames.astype(np.float32)
    if rng.random() < 0.5:
        grey = 0.299 * worn[..., 0] + 0.587 * worn[..., 1] + 0.114 * worn[..., 2]
        colour = worn - grey[..., None]
        halved = colour.reshape(count, height // 2, 2, width // 2, 2, 3).mean((2, 4))
        worn = grey[..., None] + halved.repeat(2, 1).repeat(2, 2)
    if rng.random() < 0.3:
        tall = np.concatenate([worn[:, :1], worn, worn[:, -1:]], 1)
        blurred = (tall[:, :-2] + tall[:, 2:]) / 2
        wide = np.concatenate([worn[:, :, :1], worn, worn[:, :, -1:]], 2)
        blurred += (wide[:, :, :-2] + wide[:, :, 2:]) / 2
        worn = worn + rng.uniform(0.05, 0.5) * (blurred / 2 - worn)
    if rng.random() < 0.5:
        start = rng.randrange(len(noise) - worn.size)
        worn = worn + noise[start : start + worn.size].reshape(worn.shape) * rng.uniform(1, 7)
    brightened: Pixels = np.clip(worn * rng.uniform(0.93, 1.07) + 0.5, 0, 255).astype(np.uint8)
    return brightened


def make_batch(rng: random.Random, noise: npt.NDArray[np.float32], sparse: float = 0.0) -> Batch:
    """Make a random batch of clips or images. A share `sparse` of the clips has at most eight
    frames."""
    grid = rng.choices(list(GRIDS), _GRID_WEIGHTS)[0]
    still = rng.random() < IMAGE_SHARE
    counts = range(4, 9) if rng.random() < sparse else range(4, 17)
    count = 1 if still else rng.choices(counts, (5, 5, *[8] * (len(counts) - 2)))[0]
    even = count + count % 2
    size = min(40, FRAMES_PER_BATCH // even)
    height, width = grid[0] * CELL, grid[1] * CELL
    usual, (narrowest, widest) = GRIDS[grid]
    frames = np.empty((size, even, height, width, 3), np.uint8)
    parts = []
    for index in range(size):
        aspect = rng.choice(usual) if rng.random() < 0.7 else rng.uniform(narrowest, widest)
        while True:
            times = [0.0] if still else sample_times(rng, count)
            spec = (sample_still if still else sample_clip)(rng, "trained", aspect=aspect)
            if is_readable(spec, times):
                break
        painter = Painter(spec, height, width)
        cover = np.zeros((len(spec.tracks), even, height, width), np.float32)
        for step, time in enumerate(times):
            frames[index, step] = painter.frame(time, cover[:, step])
        frames[index, :count] = wear(rng, frames[index, :count], noise)
        frames[index, count:], cover[:, count:] = (
            frames[index, count - 1],
            cover[:, count - 1 : count],
        )
        times = [*times, *times[-1:] * (even - count)]
        parts.append((spec, _labels(spec, painter, times, cover)))
    return Batch(
        frames=frames,
        captions=[caption(spec) for spec, _ in parts],
        classes=np.stack([classes for _, (classes, _) in parts]),
        motion=np.stack([motion for _, (_, motion) in parts]),
        backgrounds=np.array([BACKGROUNDS.index(spec.sentence.background) for spec, _ in parts]),
        seconds_per_patch=None if still else [sample_seconds(rng, count) for _ in parts],
    )


CLASSES: Final = (len(COLOURS) + 1, len(SHAPES) + 1, len(SIZES) + 1)
WEIGHTS: Final = (1.0, 2.0, 1.0)
"""Weights of colour, shape and size: shape is the hardest."""
EMPTY_WEIGHT: Final = 0.1
"""Weight of empty cells, which are the majority."""
STILL_BELOW: Final = 0.1
"""Movements between the two frames of a patch, in units of two pixels, that count as none."""


def headings(motion: Tensor) -> Tensor:
    """Return the class of each movement (token, 2) to the right and down: 0 for none, then
    `DIRECTIONS`."""
    across, down = motion.unbind(-1)
    sideways = torch.where(across < 0, DIRECTIONS.index("left"), DIRECTIONS.index("right"))
    upright = torch.where(down < 0, DIRECTIONS.index("up"), DIRECTIONS.index("down"))
    way = torch.where(across.abs() > down.abs(), sideways, upright) + 1
    return torch.where(motion.abs().amax(-1) < STILL_BELOW, 0, way)


class DenseHeads(nn.Module):
    """Linear heads on the vision encoder's output."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cells = nn.Linear(width, sum(CLASSES) + MOTION_TARGETS + len(DIRECTIONS) + 1)
        self.background = nn.Linear(width, len(BACKGROUNDS))

    def forward(
        self, features: Tensor, classes: Tensor, motion: Tensor, backgrounds: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of features (clip, token, channel), and the accuracy of each head."""
        read = self.cells(features).float()
        *logits, moved, ways = read.split([*CLASSES, MOTION_TARGETS, len(DIRECTIONS) + 1], -1)
        total = functional.cross_entropy(self.background(features.mean(1)).float(), backgrounds)
        right = {}
        for index, name in enumerate(("colour", "shape", "size")):
            truth = classes[:, index].flatten(1)
            scale = torch.ones(CLASSES[index])
            scale[0] = EMPTY_WEIGHT
            total = total + WEIGHTS[index] * functional.cross_entropy(
                logits[index].transpose(1, 2), truth, weight=scale, ignore_index=IGNORE
            )
            there = truth > 0
            hit = logits[index].detach().argmax(-1)[there] == truth[there]
            right[name] = hit.float().mean().item()
        target = motion.flatten(2).transpose(1, 2)
        known = ~target.isnan().any(-1)
        target, moved, ways = target[known], moved[known], ways[known]
        placed = functional.smooth_l1_loss(moved[:, :2], target[:, :2], beta=0.25)
        went = functional.smooth_l1_loss(moved[:, 2:], target[:, 2:], beta=1.0)
        way = headings(target[:, 2:])
        total = total + placed + 2 * went + 2 * functional.cross_entropy(ways, way)
        goes = way > 0
        right["place"], right["went"] = placed.item(), went.item()
        if goes.any():
            right["way"] = (ways.detach().argmax(-1) == way)[goes].float().mean().item()
        return total, right
