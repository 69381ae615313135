"""Clips of the demo's world with stored features, and a language half with an adapter that is
trained on them and asked, all in one process."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from artifacts.packs import RecordSet, stored_namespaces
from artifacts.store import open_store
from benchmarks._common import run_penstock, unheard
from flows.reviewing import teaching
from penstock_demo import CHECKPOINT
from penstock_demo.render import write_clip
from penstock_demo.world import sample_clip
from stages.decode.engines.transformers import generate_rows
from stages.decode.generate_kwargs import make_greedy
from stages.decode.protocol import CaptionOutput
from stages.decode.stored import read_features
from stages.models.halves.load import load_half
from stages.models.processors.prepare import load_processor
from stages.tune.adapter import add_adapter
from stages.tune.examples import (
    TrainingExample,
    end_token_of,
    group_batches,
    make_example,
    with_end_token,
)
from stages.tune.run import EpochBatchOrder, losses_of
from stages.tune.training import Trainer, learning_rate_at, optimizer_of

SIDE, FRAMES = 64, 4
"""Clips are square and small, so that all fit one batch."""
WORLD = 1000
"""Clips that the seeds draw from."""
ROWS = 150
MOST_TOKENS = 60
RATE = 2e-3


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """One clip of the world."""

    features: str
    prompt: str
    caption: str
    """What the demo says."""
    vector: NDArray[np.float32] = field(repr=False)
    """Pooled features."""


def world(folder: Path, count: int) -> list[Clip]:
    """Write clips, caption them with the demo, and return them."""
    clips, rng = folder / "clips", random.Random(7)
    if not (folder / "out" / "captions.jsonl").exists():
        clips.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            while (spec := sample_clip(rng, "any")).aspect != 1.0:
                pass
            small = replace(spec, height=SIDE, width=SIDE, frames_per_second=8)
            write_clip(small, clips / f"{number:04d}.mp4")
        out, store = folder / "out", folder / "store"
        run_penstock("caption", clips, "demo", out, store, "--frames", str(FRAMES))
    lines = (folder / "out" / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    features = teaching.PooledFeatures()
    vectors, note = features.of(str(folder / "store"), [row["features"] for row in rows])
    assert not note, note
    return [
        Clip(
            features=row["features"],
            prompt=row["prompt"],
            caption=row["caption"],
            vector=vectors[row["features"]],
        )
        for row in rows
    ]


class Lab:
    """The demo's language half with one adapter, which is trained, asked and reset."""

    def __init__(self, store: str) -> None:
        opened = open_store(store)
        (namespace,) = stored_namespaces(opened, "features")
        self._features = RecordSet(opened, "features", namespace)
        self._known: dict[str, Any] = {}
        self.processor = load_processor(CHECKPOINT)
        self.half = load_half(CHECKPOINT, "language", dtype=torch.float32)
        self._trained = add_adapter(self.half, 16, 0)
        self._new = [value.detach().clone() for value in self._trained]
        self._end = -1

    def _read(self, key: str) -> Any:
        if key not in self._known:
            self._known[key] = read_features(self._features, key)
        return self._known[key]

    def examples(self, clips: Sequence[Clip], texts: Sequence[str]) -> list[TrainingExample]:
        """Return clips with texts."""
        made = [
            make_example(
                self.half, self.processor, partial(self._read, clip.features), clip.prompt, text
            )
            for clip, text in zip(clips, texts, strict=True)
        ]
        if self._end < 0:
            self._end = end_token_of(self.half, self.processor, made[:4])
        return [with_end_token(each, self._end) for each in made]

    def reset(self) -> None:
        """Forget all training."""
        for value, new in zip(self._trained, self._new, strict=True):
            value.data.copy_(new)

    def train(self, examples: Sequence[TrainingExample], steps: int, seed: int) -> None:
        """Train the adapter further."""
        self.half.train()
        optimizer = optimizer_of("adamw", self._trained, RATE)
        trainer = Trainer(self.half, self.processor, self._trained, optimizer, unheard(), ROWS)
        batch = min(8, len(examples))
        order = EpochBatchOrder([each.joins_with for each in examples], batch, seed)
        for step in range(steps):
            rate = learning_rate_at(step, steps, RATE)
            trainer.step([examples[at] for at in order.batch_at(step)], rate)
        self.half.eval()

    @torch.inference_mode()
    def captions(self, examples: Sequence[TrainingExample]) -> tuple[list[str], list[float]]:
        """Return what the half says of these clips, and the least margin of each."""
        make_greedy(self.half, self.processor)
        found: dict[int, CaptionOutput] = {}
        for some in group_batches(examples, ROWS):
            shown, prompts = [each.row for each in some], [each.prompt for each in some]
            made = generate_rows(self.half, self.processor, shown, prompts, MOST_TOKENS)
            found |= {id(each): one for each, one in zip(some, made, strict=True)}
        every = [found[id(each)] for each in examples]
        return [one.caption for one in every], [one.confidence["margin"] for one in every]

    @torch.inference_mode()
    def loss(self, examples: Sequence[TrainingExample]) -> float:
        """Return the mean loss per token."""
        return losses_of(self.half, self.processor, examples, ROWS)
