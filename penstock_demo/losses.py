"""The losses besides that of the caption: what each vision token shows, and where it moves. The
heads are discarded after training."""

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from penstock_demo.batches import IGNORE, MOTION_TARGETS
from penstock_demo.words import BACKGROUNDS, COLOURS, DIRECTIONS, SHAPES, SIZES

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
