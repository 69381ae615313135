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
        [--clips 300] [--processes 2] [--folder DIR]
"""

import argparse
import json
import math
import random
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import chain, pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks._common import cells, heads, met
from benchmarks._lab import WORLD, Clip, Lab, world
from flows.machine.cpu import cpu_line
from flows.reviewing import teaching
from penstock_demo.words import COLOURS, DIRECTIONS
from stages.process.cgroup import cores

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
        wanted = [self.corrector.right(clip.caption) for clip in self.held]
        examples = self.lab.examples(self.held, wanted)
        said, _ = self.lab.captions(examples)
        pairs = zip(said, wanted, strict=True)
        own = [self.own(one) == self.own(other) for one, other in pairs]
        return {"words": statistics.mean(own), "loss": self.lab.loss(examples)}

    def own(self, text: str) -> list[str]:
        """Return the words of a text by which this corrector is known, old ones included."""
        return [
            word for word in re.findall(r"[\w.:]+", text.lower()) if word in self.corrector.known
        ]

    def all(self, steps: int) -> dict[str, float]:
        """Return the score after all clips."""
        self.lab.reset()
        wanted = [self.corrector.right(clip.caption) for clip in self.clips]
        self.lab.train(self.lab.examples(self.clips, wanted), steps, self.seed)
        return self.score()

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
            wanted = [self.corrector.right(clip.caption) for clip in clips]
            examples = self.lab.examples(clips, wanted)
            self.lab.train(examples, steps, self.seed * 1000 + len(decided))
            score = self.score()
            corrected = sum(clip.caption != text for clip, text in zip(clips, wanted, strict=True))
            yield {"decided": len(decided), "corrected": corrected, **score}
            if score[SCORE] >= goal:
                break

    def doubts(self, left: Sequence[int]) -> NDArray[np.float64]:
        """Return the margins of what the half says now of these clips."""
        clips = [self.clips[at] for at in left]
        _, margins = self.lab.captions(self.lab.examples(clips, [c.caption for c in clips]))
        return np.array(margins)


def teach(
    course: Course, left: list[int], decided: list[int], count: int, _: random.Random
) -> list[int]:
    """Choose as a review in the order `teach` does."""
    every = np.stack([course.clips[at].vector for at in (*left, *decided)])
    every = teaching.unit(every - every.mean(axis=0))
    doubts = teaching.share_of_second(course.doubts(left))
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


def one(folder: Path, corrector: str, seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """Run every order of one seed, and return the points of each."""
    torch.set_num_threads(1)
    lab = Lab(str(folder / "store"))
    course = course_of(lab, world(folder, WORLD), corrector, seed, given.clips)
    lab.reset()
    base, top = course.score(), course.all(ALL_STEPS)
    goal = goal_of(base, top, SCORE)
    found: dict[str, Any] = {"corrector": corrector, "seed": seed, "base": base, "top": top}
    for order in given.orders.split(","):
        start = {"decided": 0, "corrected": 0, **base}
        rounds = course.run(order, ROUNDS[corrector], goal, STEPS[corrector])
        found[order] = []
        for point in chain([start], rounds):
            found[order].append(point)
            print(json.dumps([corrector, seed, order, point]), file=sys.stderr, flush=True)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--correctors", default="need,style")
    options.add_argument("--orders", default="teach,random")
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--clips", type=int, default=300)
    options.add_argument("--processes", type=int, default=2)
    options.add_argument("--folder", default="", help="keep clips and features here")
    given = options.parse_args(arguments)
    began = time.monotonic()
    print(f"{cpu_line('model name')}, {cores()} cores\n", flush=True)
    with tempfile.TemporaryDirectory(prefix="penstock-learn-") as made:
        folder = Path(given.folder or made)
        world(folder, WORLD)
        jobs = [
            (folder, name, seed, given)
            for name in given.correctors.split(",")
            for seed in range(given.seeds)
        ]
        with ProcessPoolExecutor(given.processes, get_context("spawn")) as pool:
            found = list(pool.map(one, *zip(*jobs, strict=True)))
    for line in table(found, given.orders.split(",")):
        print(line)
    print(f"\n{time.monotonic() - began:.0f} s")


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
