"""Scores an adapter on examples that it was not trained on."""

from collections.abc import Sequence
from typing import Any

import torch

from stages.decode.engines.transformers import generate_rows
from stages.decode.generate_kwargs import make_greedy
from stages.tune.lessons import TrainingExample, loss_of, together

SHOWN = 8
"""Captions that are kept to be looked at."""


def losses_of(half: Any, processor: Any, lessons: Sequence[TrainingExample], rows: int) -> float:
    """Return the mean loss of a token of these."""
    tokens = sum(len(lesson.ids) for lesson in lessons)
    with torch.no_grad():
        total = sum(float(loss_of(half, processor, some)) for some in together(lessons, rows))
    return total / max(1, tokens)


def said_of(
    half: Any, processor: Any, lessons: Sequence[TrainingExample], rows: int, most: int
) -> list[str]:
    """Return what the half says of each of these, in their order."""
    make_greedy(half, processor)
    found: dict[int, str] = {}
    for some in together(lessons, rows):
        shown = [lesson.row for lesson in some]
        said = generate_rows(half, processor, shown, [each.prompt for each in some], most)
        found |= {id(each): one.caption for each, one in zip(some, said, strict=True)}
    return [found[id(lesson)] for lesson in lessons]


def score(
    half: Any,
    processor: Any,
    lessons: Sequence[TrainingExample],
    rows: int,
    most: int,
) -> dict[str, Any]:
    """Return how near the half comes to these captions: the loss of a token, the share that it
    says to the letter, the share of words that both have, and some of what it says."""
    said = said_of(half, processor, lessons, rows, most)
    pairs = [(one, lesson.caption) for one, lesson in zip(said, lessons, strict=True)]
    return {
        "loss": losses_of(half, processor, lessons, rows),
        "exact": sum(one == other for one, other in pairs) / max(1, len(pairs)),
        "words": sum(alike(one, other) for one, other in pairs) / max(1, len(pairs)),
        "samples": [{"said": one, "right": other} for one, other in pairs[:SHOWN]],
    }


def alike(one: str, other: str) -> float:
    """Return the share of words that two texts have in common, of all that either has: the F1 of
    SQuAD (Rajpurkar et al. 2016)."""
    first, second = one.lower().split(), other.lower().split()
    left = list(second)
    common = 0
    for word in first:
        if word in left:
            left.remove(word)
            common += 1
    return 2 * common / max(1, len(first) + len(second))
