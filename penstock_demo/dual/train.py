"""Trains the demo's dual encoder from scratch: `python -m penstock_demo.dual.train --out DIR`.

It learns from drawn images; docs/demo.md has its scores on real files. A stopped run continues
from its last state when it is started again.
"""

import argparse
import copy
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import SiglipModel, SiglipProcessor

from penstock_demo.dual.batches import FEW, MANY, SIDE, Counts, make_image_batch
from penstock_demo.dual.build import DualShape, build_dual
from penstock_demo.dual.phrases import IGNORED, sample_phrases
from penstock_demo.dual.pictures import GROUPS
from penstock_demo.dual.scenes import PAIRS, TRAINED, Pair, paint_ground, paint_things, sample_scene
from penstock_demo.losses import IGNORE
from penstock_demo.render import Pixels
from penstock_demo.train import optimizers
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
    losses = functional.binary_cross_entropy_with_logits(
        logits, truths.clamp(min=0), reduction="none"
    )
    total = SIGMOID_WEIGHT * (losses * known).sum() / len(logits)
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
        colours, shapes = (labels.clamp(min=0) for labels in classes.flatten(2))
        # A pair that never occurs is not counted against its colour or its shape either.
        closed = NEVER.T[shapes], NEVER[colours]
        for head, target, never, weight in zip(
            self.patches, classes.flatten(2), closed, DENSE_WEIGHTS, strict=True
        ):
            read = head(states).float().masked_fill(never, CLOSED).transpose(1, 2)
            losses = functional.cross_entropy(read, target, ignore_index=IGNORE, reduction="none")
            shown_loss = losses[target > 0].mean()
            total = total + weight * (shown_loss + EMPTY_WEIGHT * losses[target == 0].mean())
            shown = shown_loss.item()
        present = torch.cat([truths[:, GROUPS[1]], truths[:, GROUPS[2]]], 1)
        whole_loss = functional.binary_cross_entropy_with_logits(
            self.whole(vectors).float(), present.clamp(min=0), reduction="none"
        )
        # Both halves of the image's head count together as much as one mean over each.
        return total + 2 * (whole_loss * (present != IGNORED)).mean(), shown


LOG_EVERY, TRY_EVERY, KEEP_EVERY = 50, 250, 250
"""Steps after which figures are logged, test images are tried, and the state is saved."""
TRIED: Final = 200
STEEPEST: Final = 40.0
"""Maximum scale of a cosine."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DualRecipe:
    """The settings by which the dual encoder is trained."""

    steps: int = 3400
    seed: int = 3
    """Seed of weights and data."""
    batch: int = 48
    """Images per step."""
    learning_rate: float = 2.5e-3
    """Peak value, for both optimizers."""
    flat_share: float = 0.4
    """Share of the steps before the learning rate starts to fall to zero."""
    crowded_share: float = 0.3
    """Share of the steps with images full of large things. Such an image costs the same and teaches
    more about shape, which is learnt last."""
    composed_weight: float = 2.0
    """Weight of the loss that keeps texts of pairs near the sum of their words."""
    dense_floor: float = 0.3
    """Value to which the weight of the dense losses falls, from 1."""

    def rate(self, step: int) -> float:
        fall = min(1.0, (1 - step / self.steps) / (1 - self.flat_share))
        return self.learning_rate * max(fall * min(1.0, (step + 1) / 40), 0.002)

    def drawn(self, step: int) -> tuple[tuple[float, float], Counts]:
        """Return the range of radii of things in a step, and how many there are."""
        is_crowded = step < self.crowded_share * self.steps
        return ((7.0, 14.0), MANY) if is_crowded else ((4.5, 18.0), FEW)


def as_input(pixels: Pixels) -> Tensor:
    """Return images in the format of the processor."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


def read_texts(model: SiglipModel, processor: Any, texts: Sequence[str]) -> Tensor:
    """Return the vectors of texts, each of length 1."""
    made = processor.tokenizer(
        list(texts), padding="max_length", truncation=True, return_tensors="pt"
    )
    return nn.functional.normalize(model.text_model(**made).pooler_output.float(), dim=-1)


def try_images(model: SiglipModel, processor: Any, pairs: Sequence[Pair], seed: int) -> float:
    """Return the percentage of one-thing images that are classified right among 48 pairs."""
    rng = random.Random(seed)
    scenes = [sample_scene(rng, 1, pairs, (6.0, 18.0), grounds=True) for _ in range(TRIED)]
    pixels = np.empty((TRIED, SIDE, SIDE, 3), np.uint8)
    for index, scene in enumerate(scenes):
        image = paint_ground(scene, SIDE, SIDE)
        paint_things(scene, image)
        pixels[index] = np.clip(image, 0, 255).astype(np.uint8)
    with torch.no_grad():
        texts = read_texts(model, processor, [f"a photo of {c} {s}" for c, s in PAIRS])
        nearest = (model.vision_model(as_input(pixels)).pooler_output @ texts.T).argmax(1)
    hits = [PAIRS[at] == scene.things[0].pair for at, scene in zip(nearest, scenes, strict=True)]
    return round(100 * sum(hits) / TRIED, 1)


def save_dual(model: SiglipModel, processor: SiglipProcessor, folder: Path) -> None:
    """Write a plain bf16 checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    frozen = copy.deepcopy(model).bfloat16()
    parts: list[Any] = [frozen.config, frozen.config.text_config, frozen.config.vision_config]
    for config in parts:
        config._attn_implementation = None
    frozen.save_pretrained(folder)
    processor.save_pretrained(folder)


class DualTraining:
    """A model in training, with everything that a step changes."""

    def __init__(self, recipe: DualRecipe, shape: DualShape) -> None:
        torch.manual_seed(recipe.seed)
        np.random.seed(recipe.seed)
        self.recipe = recipe
        self.model, self.processor = build_dual(shape, recipe.seed)
        self.model.set_attn_implementation("eager")
        self.heads = ImageHeads(shape.vision_width)
        self.optimizers = optimizers([self.model, self.heads], recipe.learning_rate)
        self.rng = random.Random(recipe.seed)
        self.noise = np.random.RandomState(recipe.seed).randn(1 << 20).astype(np.float32)
        self.done = 0
        self.cpu_seconds = 0.0
        self.log: list[dict[str, Any]] = []

    def step(self) -> dict[str, float]:
        recipe, at = self.recipe, self.done
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate(at)
        batch = make_image_batch(self.rng, self.noise, recipe.batch, *recipe.drawn(at))
        phrases = sample_phrases(self.rng)
        truths = torch.from_numpy(phrases.truths(batch.scenes))
        with torch.autocast("cpu", torch.bfloat16):
            seen = self.model.vision_model(as_input(batch.pixels))
            texts = read_texts(self.model, self.processor, phrases.texts)
            dense, shape = self.heads(
                seen.last_hidden_state, seen.pooler_output, torch.from_numpy(batch.classes), truths
            )
        vectors = nn.functional.normalize(seen.pooler_output.float(), dim=-1)
        scale = self.model.logit_scale.exp().clamp(max=STEEPEST)
        compared = comparison_loss(vectors @ texts.T * scale + self.model.logit_bias, truths)
        weight = 1 - (1 - recipe.dense_floor) * at / recipe.steps
        composed = composition_loss(texts)
        total: Any = compared + weight * dense + recipe.composed_weight * composed
        total.backward()
        every = [*self.model.parameters(), *self.heads.parameters()]
        nn.utils.clip_grad_norm_(every, 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.done += 1
        losses = {"compared": compared.item(), "composed": composed.item()}
        return losses | {"dense": dense.item(), "patch_shape": shape}

    def state(self) -> dict[str, Any]:
        """Return everything that a step changes."""
        return {
            "model": self.model.state_dict(),
            "heads": self.heads.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "rng": self.rng.getstate(),
            "done": self.done,
            "cpu_seconds": self.cpu_seconds,
            "log": self.log,
        }

    def take(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"])
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        self.rng.setstate(state["rng"])
        self.done, self.log = state["done"], state["log"]
        self.cpu_seconds = state["cpu_seconds"]

    def tried(self) -> dict[str, float]:
        """Return the accuracy on images of trained and of untrained pairs."""
        self.model.eval()
        both = {"trained": TRAINED, "never": sorted(NEVER_TRAINED)}
        accuracies = {
            name: try_images(self.model, self.processor, pairs, 101) for name, pairs in both.items()
        }
        self.model.train()
        return accuracies


def train_dual(recipe: DualRecipe, folder: Path, shape: DualShape) -> None:
    """Train for the recipe's steps, from the state in the folder if there is one."""
    torch.set_num_threads(1)
    training = DualTraining(recipe, shape)
    kept = folder / "state.pt"
    if kept.exists():
        training.take(torch.load(kept, weights_only=False))
    training.model.train()
    smooth: dict[str, float] = {}
    before = time.process_time() - training.cpu_seconds
    while training.done < recipe.steps:
        for name, value in training.step().items():
            smooth[name] = 0.95 * smooth.get(name, value) + 0.05 * value
        done = training.done
        if done % LOG_EVERY == 0 or done == recipe.steps:
            training.cpu_seconds = time.process_time() - before
            line = {"step": done, "cpu_seconds": round(training.cpu_seconds, 1)}
            line |= {name: round(value, 3) for name, value in smooth.items()}
            if done % TRY_EVERY == 0 or done == recipe.steps:
                line |= training.tried()
            training.log.append(line)
            sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()
        if done % KEEP_EVERY == 0:
            folder.mkdir(parents=True, exist_ok=True)
            torch.save(training.state(), kept.with_suffix(".new"))
            kept.with_suffix(".new").replace(kept)
    save_dual(training.model, training.processor, folder)
    record = {"recipe": asdict(recipe), "shape": asdict(shape), "log": training.log}
    (folder / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    kept.unlink(missing_ok=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=DualRecipe().steps)
    parser.add_argument("--seed", type=int, default=DualRecipe().seed)
    chosen = parser.parse_args()
    train_dual(DualRecipe(steps=chosen.steps, seed=chosen.seed), chosen.out, DualShape())
