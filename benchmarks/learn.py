"""How many captions must be decided until a model has learned what a corrector wants, in the order
`teach` and in a random one; prints a table.

A clip's right words are those that the demo says of it, as a corrector would write them. *Need*:
two colours and one direction are called otherwise, in 17 % of the clips; the rest is accepted.
*Style*: every caption is rephrased. Clips are decided in rounds. After each round the adapter is
trained on all that was decided, from the last one, on stored features. It is scored on held-out
clips that need a correction: the share in which the corrector's own words are right. Order `teach`
ranks the rest anew after each round, by the adapter's own doubt. A run ends where it gains 90 % of
what a training on all clips gains; between two rounds the number is interpolated.

    python -m benchmarks.learn [--correctors need,style] [--orders teach,random] [--seeds 5]
        [--clips 300] [--folder DIR]
"""

import argparse
import json
import math
import random
import re
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from artifacts.packs import RecordSet, stored_namespaces
from artifacts.store import open_store
from benchmarks._common import cells, heads, met, run_penstock, unheard
from flows.machine.versions import cpu_line
from flows.reviewing import teaching
from penstock_demo import CHECKPOINT
from penstock_demo.render import write_clip
from penstock_demo.words import COLOURS, DIRECTIONS
from penstock_demo.world import sample_clip
from stages.decode.engines.transformers import generate_rows
from stages.decode.generate_kwargs import make_greedy
from stages.decode.protocol import CaptionOutput, read_features
from stages.models.halves.load import load_half
from stages.models.processors.loading import load_processor
from stages.process.memory import cores
from stages.tune.adapter import add_adapter
from stages.tune.run import EpochBatchOrder, losses_of
from stages.tune.training import (
    Trainer,
    TrainingExample,
    end_token_of,
    group_batches,
    learning_rate_at,
    make_example,
    optimizer_of,
    with_end_token,
)

SIDE, FRAMES = 64, 4
"""Clips are square and small, so that all fit one batch."""
WORLD = 1000
"""Clips that the seeds draw from."""
ROWS = 150
MOST_TOKENS = 60
RATE = 2e-3
SHARE = 0.17
"""Share of the clips with a need, of those that are decided."""
HELD_NEED, HELD_REST = 80, 40
"""Clips held out: scored are those with a need."""
ENOUGH = 0.9
SCORE = "words"
"""A run ends when this score is reached."""
SCORES = {"words": "own words right", "loss": "loss per token"}
NEW_COLOURS = ("crimson", "teal", "violet", "amber", "navy", "lime", "rose", "beige")
NEW_DIRECTIONS = {"left": "leftwards", "right": "rightwards", "up": "upwards", "down": "downwards"}
GOALS = {"need": 0.6, "style": 1.05}
ROUNDS = {"need": 20, "style": 5}
"""Captions that are decided between two trainings."""
STEPS = {"need": 30, "style": 12}
"""Optimizer steps of one training."""
ALL_STEPS = 240
"""Optimizer steps of the training on all clips."""


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
        self._read = cache(partial(read_features, RecordSet(opened, "features", namespace)))
        self.processor = load_processor(CHECKPOINT)
        self.half = load_half(CHECKPOINT, "language", dtype=torch.float32)
        self._trained = add_adapter(self.half, 16, 0)
        self._new = [value.detach().clone() for value in self._trained]
        self._end = -1

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
            trainer.step([examples[at] for at in order.batch_at(step)], rate, step + 1)
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
        return [one.caption for one in every], [one.fields["margin"] for one in every]

    def loss(self, examples: Sequence[TrainingExample]) -> float:
        """Return the mean loss per token."""
        with torch.inference_mode():
            return losses_of(self.half, self.processor, examples, ROWS)


@dataclass(frozen=True, kw_only=True, slots=True)
class Corrector:
    """How a person corrects."""

    right: Callable[[str], str]
    """The model's caption → the right one."""
    known: frozenset[str]
    """Words that this person writes and the demo does not, and words that this person replaces."""


def need(seed: int) -> Corrector:
    """Return a corrector who calls two colours and one direction otherwise."""
    draw = random.Random(f"need {seed}")
    old, new = draw.sample(COLOURS, 2), draw.sample(NEW_COLOURS, 2)
    way = draw.choice(DIRECTIONS)
    words = {**dict(zip(old, new, strict=True)), way: NEW_DIRECTIONS[way]}
    pattern = re.compile(rf"\b({'|'.join(words)})\b")
    return Corrector(
        right=lambda caption: pattern.sub(lambda found: words[found[1]], caption),
        known=frozenset((*words, *words.values())),
    )


def style(seed: int) -> Corrector:
    """Return a corrector who rephrases every caption."""
    opening = random.Random(f"style {seed}").choice(("seen here:", "in this shot", "we see"))
    return Corrector(
        right=lambda caption: f"{opening} {caption[0].lower()}{caption[1:].rstrip('.')}",
        known=frozenset((*opening.split(), "background", "background.")),
    )


CORRECTORS = {"need": need, "style": style}


@dataclass(kw_only=True, slots=True)
class Course:
    """One corrector of one seed: what is decided, and what is held out."""

    lab: Lab
    clips: list[Clip]
    held: list[Clip]
    corrector: Corrector
    seed: int

    def score(self) -> dict[str, float]:
        """Return the scores on the clips that are held out."""
        expected = [self.corrector.right(clip.caption) for clip in self.held]
        examples = self.lab.examples(self.held, expected)
        text, _ = self.lab.captions(examples)
        pairs = zip(text, expected, strict=True)
        own = [self.own(one) == self.own(other) for one, other in pairs]
        return {"words": statistics.mean(own), "loss": self.lab.loss(examples)}

    def own(self, text: str) -> list[str]:
        """Return the words of a text by which this corrector is known, old ones included."""
        return [
            word for word in re.findall(r"[\w.:]+", text.lower()) if word in self.corrector.known
        ]

    def run(self, order: str, each: int, goal: float, steps: int) -> Iterator[dict[str, Any]]:
        """Decide clips in rounds until the goal is reached, and yield the score after each."""
        self.lab.reset()
        left, decided = list(range(len(self.clips))), list[int]()
        draw = random.Random(f"{order} {self.seed}")
        while left:
            chosen = ORDERS[order](self, left, decided, each, draw)
            decided += chosen
            left = [at for at in left if at not in set(chosen)]
            clips = [self.clips[at] for at in decided]
            expected = [self.corrector.right(clip.caption) for clip in clips]
            examples = self.lab.examples(clips, expected)
            self.lab.train(examples, steps, self.seed * 1000 + len(decided))
            score = self.score()
            corrected = sum(
                clip.caption != text for clip, text in zip(clips, expected, strict=True)
            )
            yield {"decided": len(decided), "corrected": corrected, **score}
            if score[SCORE] >= goal:
                break


def teach(
    course: Course, left: list[int], decided: list[int], count: int, _: random.Random
) -> list[int]:
    """Choose as a review in the order `teach` does."""
    clips = [course.clips[at] for at in left]
    examples = course.lab.examples(clips, [clip.caption for clip in clips])
    margins = np.array(course.lab.captions(examples)[1])
    every = np.stack([course.clips[at].vector for at in (*left, *decided)])
    every = teaching.unit(every - every.mean(axis=0))
    doubts = teaching.share_of_second(margins)
    chosen = teaching.choose(doubts, every[: len(left)], every[len(left) :], count)
    return [left[at] for at in chosen]


def at_random(
    course: Course, left: list[int], decided: list[int], count: int, draw: random.Random
) -> list[int]:
    return draw.sample(left, min(count, len(left)))


ORDERS = {"teach": teach, "random": at_random}


def course_of(lab: Lab, clips: Sequence[Clip], corrector: str, seed: int, count: int) -> Course:
    """Draw the clips of a seed."""
    person, draw = CORRECTORS[corrector](seed), random.Random(seed)
    order = draw.sample(clips, len(clips))
    needed = [clip for clip in order if person.right(clip.caption) != clip.caption]
    others = [clip for clip in order if person.right(clip.caption) == clip.caption]
    few = count if corrector == "style" else round(SHARE * count)
    chosen = [*needed[HELD_NEED:][:few], *others[HELD_REST:][: count - few]]
    assert len(chosen) == count, "the world is too small for this share"
    return Course(
        lab=lab,
        clips=draw.sample(chosen, count),
        held=needed[:HELD_NEED],
        corrector=person,
        seed=seed,
    )


def goal_of(base: Mapping[str, float], top: Mapping[str, float], score: str) -> float:
    """Return the score at which enough of the gain is reached."""
    return base[score] + ENOUGH * (top[score] - base[score])


def reached(each: Mapping[str, Any], order: str, score: str) -> tuple[float, float] | None:
    """Return how many were decided, and corrected, when a score was reached; None: it was not."""
    goal, down = goal_of(each["base"], each["top"], score), score == "loss"
    for before, point in pairwise(each[order]):
        if (point[score] <= goal) if down else (point[score] >= goal):
            part = max(0.0, (goal - before[score]) / (point[score] - before[score]))
            between = [before[n] + part * (point[n] - before[n]) for n in ("decided", "corrected")]
            return between[0], between[1]
    return None


def taught(folder: Path, corrector: str, seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """Run every order of one seed, and return the points of each."""
    torch.set_num_threads(1)
    lab = Lab(str(folder / "store"))
    course = course_of(lab, world(folder, WORLD), corrector, seed, given.clips)
    lab.reset()
    base = course.score()
    expected = [course.corrector.right(clip.caption) for clip in course.clips]
    lab.train(lab.examples(course.clips, expected), ALL_STEPS, seed)
    top = course.score()
    goal = goal_of(base, top, SCORE)
    found: dict[str, Any] = {"corrector": corrector, "seed": seed, "base": base, "top": top}
    for order in given.orders.split(","):
        found[order] = [{"decided": 0, "corrected": 0, **base}]
        for point in course.run(order, ROUNDS[corrector], goal, STEPS[corrector]):
            found[order].append(point)
            print(json.dumps([corrector, seed, order, point]), file=sys.stderr, flush=True)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--correctors", default="need,style")
    options.add_argument("--orders", default="teach,random")
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--clips", type=int, default=300)
    options.add_argument("--folder", default="", help="keep clips and features here")
    given = options.parse_args(arguments)
    print(f"{cpu_line('model name')}, {cores()} cores\n", flush=True)
    with tempfile.TemporaryDirectory(prefix="penstock-learn-") as made:
        folder = Path(given.folder or made)
        world(folder, WORLD)
        jobs = [
            (folder, name, seed, given)
            for name in given.correctors.split(",")
            for seed in range(given.seeds)
        ]
        with ProcessPoolExecutor(cores(), get_context("spawn")) as pool:
            found = list(pool.map(taught, *zip(*jobs, strict=True)))
    print("\n".join(table(found, given.orders.split(","))))


def table(found: Sequence[Mapping[str, Any]], orders: Sequence[str]) -> Iterator[str]:
    """Yield how many were decided until each score was reached, and the ratios to the last
    order."""
    *others, last = orders
    names = " | ".join(f"{order}: decided (corrected)" for order in orders)
    ratios = " | ".join(f"{order} / {last}" for order in others)
    yield heads(f"corrector | score | seed | before | with all | {names} | {ratios}")
    every: dict[tuple[str, str, str], list[float]] = {}
    for each, score in ((each, score) for score in SCORES for each in found):
        at = {order: reached(each, order, score) for order in orders}
        counts = ["not reached" if n is None else f"{n[0]:.0f} ({n[1]:.0f})" for n in at.values()]
        row = []
        for order in others:
            one, other = at[order], at[last]
            ratio = math.inf if one is None or other is None else one[0] / other[0]
            every.setdefault((each["corrector"], score, order), []).append(ratio)
            row.append(f"{ratio:.2f}")
        scores = [f"{each[name][score]:.2f}" for name in ("base", "top")]
        yield cells([each["corrector"], score, each["seed"], *scores, *counts, *row])
    yield ""
    for (corrector, score, order), some in every.items():
        mean, goal = statistics.mean(some), GOALS[corrector]
        yield (
            f"{corrector}, {SCORES[score]}: {order} / {last} = {mean:.2f} ({min(some):.2f} to "
            f"{max(some):.2f}), asked for at most {goal}: {met(mean <= goal)}"
        )


if __name__ == "__main__":
    main()
