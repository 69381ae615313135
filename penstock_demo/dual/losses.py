"""The losses of the dual encoder: texts against images, and what patches and images show. The heads
are discarded after training."""

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from penstock_demo.dual.pictures import GROUPS, IGNORED
from penstock_demo.dual.scenes import TRAINED
from penstock_demo.losses import IGNORE
from penstock_demo.words import COLOURS, NEVER_TRAINED, SHAPES

DENSE_WEIGHTS: Final = (1.0, 2.0)
"""Weights of colour and shape of patches: shape is the hardest."""
GROUP_WEIGHTS: Final = (1.0, 0.5, 0.5, 0.2)
"""Weights of choosing among pairs, colours, shapes and grounds."""
SIGMOID_WEIGHT: Final = 0.2
"""Weight of judging each text alone, summed over the texts; this trains the bias."""
EMPTY_WEIGHT: Final = 0.2
"""Weight of patches that show nothing. With full weight they dominate, and shape stays at chance
for 500 steps."""
NEVER: Final = torch.zeros(1 + len(COLOURS), 1 + len(SHAPES), dtype=torch.bool)
"""Whether a class of colour never occurs with a class of shape; class 0 is nothing."""
for _colour, _shape in NEVER_TRAINED:
    NEVER[1 + COLOURS.index(_colour), 1 + SHAPES.index(_shape)] = True
CLOSED: Final = -1e4
"""Logit of an excluded class."""


def comparison_loss(logits: Tensor, truths: Tensor) -> Tensor:
    """Return the loss of logits (image, text): a choice within each group of texts, and a yes or no
    for each text."""
    known = truths != IGNORED
    each = functional.binary_cross_entropy_with_logits(
        logits, truths.clamp(min=0), reduction="none"
    )
    total = SIGMOID_WEIGHT * (each * known).sum() / len(logits)
    for group, weight in zip(GROUPS, GROUP_WEIGHTS, strict=True):
        right = truths[:, group].clamp(min=0)
        has_truth = right.sum(1) > 0
        if has_truth.any():
            shares = right[has_truth] / right[has_truth].sum(1, keepdim=True)
            open_to = logits[:, group].masked_fill(~known[:, group], CLOSED)[has_truth]
            total = total - weight * (shares * open_to.log_softmax(1)).sum(1).mean()
    return total


def composition_loss(texts: Tensor) -> Tensor:
    """Return how far the text vectors of pairs, (text, channel) of length 1, deviate from the sum
    of those of their colour and their shape."""
    colours, shapes = texts[GROUPS[1]], texts[GROUPS[2]]
    sums = torch.stack(
        [colours[COLOURS.index(colour)] + shapes[SHAPES.index(s)] for colour, s in TRAINED]
    )
    return 1 - functional.cosine_similarity(texts[GROUPS[0]], sums).mean()


class ImageHeads(nn.Module):
    """Linear heads on the vision encoder: one for each patch, and one for the image's vector."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.patches = nn.ModuleList(
            [nn.Linear(width, 1 + len(COLOURS)), nn.Linear(width, 1 + len(SHAPES))]
        )
        self.whole = nn.Linear(width, len(COLOURS) + len(SHAPES))

    def forward(
        self, states: Tensor, vectors: Tensor, classes: Tensor, truths: Tensor
    ) -> tuple[Tensor, float]:
        """Return the loss of states (image, patch, channel) and vectors (image, channel), and the
        shape loss of patches that show one."""
        total = vectors.new_zeros((), dtype=torch.float32)
        shown = 0.0
        colours, shapes = (each.clamp(min=0) for each in classes.flatten(2))
        # A pair that never occurs is not counted against its colour or its shape either.
        closed = NEVER.T[shapes], NEVER[colours]
        for head, target, never, weight in zip(
            self.patches, classes.flatten(2), closed, DENSE_WEIGHTS, strict=True
        ):
            read = head(states).float().masked_fill(never, CLOSED).transpose(1, 2)
            each = functional.cross_entropy(read, target, ignore_index=IGNORE, reduction="none")
            shown_loss = each[target > 0].mean()
            total = total + weight * (shown_loss + EMPTY_WEIGHT * each[target == 0].mean())
            shown = shown_loss.item()
        present = torch.cat([truths[:, GROUPS[1]], truths[:, GROUPS[2]]], 1)
        whole_loss = functional.binary_cross_entropy_with_logits(
            self.whole(vectors).float(), present.clamp(min=0), reduction="none"
        )
        # Both halves of the image's head count together as much as one mean over each.
        return total + 2 * (whole_loss * (present != IGNORED)).mean(), shown
