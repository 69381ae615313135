"""Trains the demo's model from scratch in the given time:
`python -m penstock_demo.train --out DIR`.

It learns from drawn frames; `penstock_demo.evaluate` scores it on real video files.
"""

import argparse
import copy
import itertools
import json
import random
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

from penstock_demo.build import IMAGE_PROMPT, SPECIAL, VIDEO_PROMPT, WORDINGS, Shape, build
from penstock_demo.fast_vision import decode, fuse_norms, positions, vision
from penstock_demo.losses import CELL, Batch, DenseHeads, make_batch
from penstock_demo.words import COLOURS

SAVE_EVERY_SECONDS: Final = 240.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """The settings by which the model is trained."""

    minutes: float
    """Wall time. The learning rate depends on it, so that training ends on time on any machine."""
    seed: int = 0
    """Seed of weights and data."""
    learning_rate: float = 2.5e-3
    """Peak value, for both optimizers."""
    flat_share: float = 0.35
    """Share of the time before the learning rate starts to fall to zero."""
    dense_floor: float = 0.3
    """Value to which the weight of the dense losses falls, from 1."""
    word_dropout: float = 0.15
    """Share of the caption's input tokens that are replaced at random."""
    colour_swaps: float = 0.4
    """Share of colour words in the input that are replaced: a colour must not reveal the shape."""
    sparse_share: float = 0.8
    """Share of batches with at most eight frames, until `flat_share`: motion is clear there."""
    threads: int = 2
    """Threads of torch."""


class Asker:
    """Turns a batch's captions and a random prompt into token ids and positions."""

    def __init__(self, processor: Qwen2_5_VLProcessor, recipe: Recipe, per_second: int) -> None:
        self.processor, self.recipe, self.per_second = processor, recipe, per_second
        self.tokenizer = processor.tokenizer
        self.rng = random.Random(recipe.seed)
        colours = [self.tokenizer(f" {colour}").input_ids for colour in COLOURS]
        if any(len(ids) != 1 for ids in colours):
            raise ValueError(f"colours={colours!r}: each must be one token of the vocabulary")
        self.colours = torch.tensor([ids[0] for ids in colours])

    def _lead(self, kind: str, tokens: int) -> Tensor:
        """Return the ids of one user turn up to the answer, with its placeholders repeated."""
        usual = IMAGE_PROMPT if kind == "image" else VIDEO_PROMPT
        way = self.rng.random()
        prompt = usual if way < 0.45 else self.rng.choice(WORDINGS)
        content: Any = [{"type": kind}, {"type": "text", "text": prompt}]
        text: str = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        pad = f"<|{kind}_pad|>"
        ids: Tensor = self.tokenizer(
            text.replace(pad, pad * tokens), return_tensors="pt"
        ).input_ids[0]
        if way < 0.8:
            return ids
        ends = self.tokenizer.convert_tokens_to_ids(["<|vision_end|>", "<|im_end|>"])
        start, end = (ids.tolist().index(token) for token in ends)
        noise = torch.randint(len(SPECIAL), len(self.tokenizer), (self.rng.randint(1, 20),))
        return torch.cat([ids[: start + 1], noise, ids[end:]])

    def _worn(self, answers: Tensor) -> Tensor:
        colour = torch.isin(answers, self.colours) & (
            torch.rand(answers.shape) < self.recipe.colour_swaps
        )
        other = self.colours[torch.randint(len(self.colours), answers.shape)]
        worn = torch.where(colour, other, answers)
        noise = torch.randint(len(SPECIAL), len(self.tokenizer), answers.shape)
        return torch.where(torch.rand(answers.shape) < self.recipe.word_dropout, noise, worn)

    def ask(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return ids with degraded answers, positions, the right answers, and a mask of their
        tokens that count."""
        clips, times, height, width, _ = batch.frames.shape
        patches, rows, columns = times // 2, height // CELL, width // CELL
        tokens = patches * rows * columns
        lead = self._lead("video" if batch.seconds_per_patch else "image", tokens)
        tokenized = self.tokenizer(
            [text + "<|im_end|>" for text in batch.captions],
            padding=True, padding_side="right", return_tensors="pt",
        )  # fmt: skip
        answers = tokenized.input_ids
        ids = torch.cat([lead.expand(clips, -1), self._worn(answers)], 1)
        intervals = torch.tensor(batch.seconds_per_patch or [0.0] * clips) * self.per_second
        pads = self.tokenizer.convert_tokens_to_ids(["<|video_pad|>", "<|image_pad|>"])
        before = int(torch.isin(lead, torch.tensor(pads)).nonzero()[0])
        after = ids.shape[1] - before - tokens
        where = positions(before, patches, rows, columns, after, intervals)
        return ids, where, answers, tokenized.attention_mask.bool()


def optimizers(modules: list[nn.Module], rate: float) -> list[torch.optim.Optimizer]:
    """Return Muon for the inner matrices, and AdamW for the rest."""
    named = {id(p): (name, p) for module in modules for name, p in module.named_parameters()}
    inside: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in named.values():
        is_inside = parameter.ndim == 2 and "embed" not in name and "lm_head" not in name
        (inside if is_inside else rest).append(parameter)
    return [
        torch.optim.Muon(
            inside, lr=rate, weight_decay=0.02, momentum=0.95, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def save(
    model: Qwen2_5_VLForConditionalGeneration, processor: Qwen2_5_VLProcessor, folder: Path
) -> None:
    """Write a plain bf16 checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    frozen = copy.deepcopy(model).bfloat16()
    frozen.config._attn_implementation = None
    frozen.save_pretrained(folder)
    processor.save_pretrained(folder)


def losses(
    model: Qwen2_5_VLForConditionalGeneration, heads: DenseHeads, asker: Asker, batch: Batch
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """Return the loss of the captions, that of the dense heads, and the accuracy of each head."""
    ids, where, answers, counts = asker.ask(batch)
    with torch.autocast("cpu", torch.bfloat16):
        features = vision(model, torch.from_numpy(batch.frames))
        dense, right = heads(
            features,
            torch.from_numpy(batch.classes),
            torch.from_numpy(batch.motion),
            torch.from_numpy(batch.backgrounds),
        )
        hidden = decode(model, ids, features, where)
        first = ids.shape[1] - answers.shape[1] - 1
        logits = model.lm_head(hidden[:, first:-1][counts]).float()
    caption_loss = functional.cross_entropy(logits, answers[counts])
    right["word"] = (logits.detach().argmax(-1) == answers[counts]).float().mean().item()
    return caption_loss, dense, right | {"told": caption_loss.item(), "dense": dense.item()}


def train(recipe: Recipe, folder: Path, shape: Shape, start: Path | None = None) -> None:
    """Train for the recipe's minutes; save a checkpoint in the folder every few minutes."""
    torch.set_num_threads(recipe.threads)
    fuse_norms()
    model, processor = build(shape, recipe.seed)
    if start is not None:
        model = Qwen2_5_VLForConditionalGeneration.from_pretrained(start, dtype=torch.float32)
    model.train()
    model.model.language_model.config._attn_implementation = "eager"
    heads = DenseHeads(shape.text_width)
    asker = Asker(processor, recipe, shape.tokens_per_second)
    both = optimizers([model, heads], recipe.learning_rate)
    every = [p for o in both for group in o.param_groups for p in group["params"]]
    smooth: dict[str, float] = {}
    log: list[dict[str, Any]] = []
    began = saved = time.monotonic()
    rng = random.Random(recipe.seed + 17)
    noise = np.random.RandomState(recipe.seed).randn(1 << 21).astype(np.float32)
    for step in itertools.count():
        elapsed = time.monotonic() - began
        share = elapsed / 60 / recipe.minutes
        if share >= 1:
            break
        fall = min(1.0, (1 - share) / (1 - recipe.flat_share)) * min(1.0, (step + 1) / 60)
        for optimizer in both:
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * max(fall, 0.002)
        sparse = recipe.sparse_share * max(0.0, 1 - share / recipe.flat_share)
        caption_loss, dense, right = losses(model, heads, asker, make_batch(rng, noise, sparse))
        total: Any = caption_loss + max(recipe.dense_floor, 1 - share) * dense
        total.backward()
        nn.utils.clip_grad_norm_(every, 1.0)
        for optimizer in both:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        for name, value in right.items():
            smooth[name] = value if name not in smooth else 0.95 * smooth[name] + 0.05 * value
        if step % 50 == 49 or step == 4:
            figures = {name: round(value, 4) for name, value in smooth.items()}
            log.append({"step": step + 1, "seconds": round(elapsed, 1), **figures})
            sys.stdout.write(json.dumps(log[-1]) + "\n")
            sys.stdout.flush()
        if time.monotonic() - saved > SAVE_EVERY_SECONDS:
            saved = time.monotonic()
            save(model, processor, folder)
    save(model, processor, folder)
    record = {"recipe": asdict(recipe), "shape": asdict(shape), "log": log}
    (folder / "training.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=55.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=Path, help="a checkpoint to continue from")
    chosen = parser.parse_args()
    train(Recipe(minutes=chosen.minutes, seed=chosen.seed), chosen.out, Shape(), chosen.start)
