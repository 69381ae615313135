"""Scores an adapter by examples that it was not trained on; knows no file."""

from collections.abc import Sequence
from typing import Any

import torch

from stages.decode.choosing import make_greedy
from stages.models.halves.delivery import generate, new_tokens, prompt_in
from stages.models.halves.features import Features
from stages.models.halves.records import merge_blank, merge_rows
from stages.models.processors.prepare import open_ended, rebuild
from stages.tune.lessons import Lesson, loss_of
from stages.tune.order import together

SHOWN = 8
"""Captions that are kept to be looked at."""


def losses_of(half: Any, processor: Any, lessons: Sequence[Lesson], rows: int) -> float:
    """Return the mean loss of a token of these."""
    tokens = sum(len(lesson.ids) for lesson in lessons)
    with torch.no_grad():
        total = sum(
            float(loss_of(half, processor, some))
            for some in together(
                lessons, rows, lambda each: each.joins_with, lambda each: len(each.ids)
            )
        )
    return total / max(1, tokens)


def said_of(
    half: Any, processor: Any, lessons: Sequence[Lesson], rows: int, most: int
) -> list[str]:
    """Return what the half says of each of these, in their order."""
    make_greedy(half, processor)
    found: dict[int, str] = {}
    numbered = list(enumerate(lessons))
    groups = together(numbered, rows, lambda each: each[1].joins_with, lambda each: each[0])
    for some in groups:
        rows_of = [lesson.row for _, lesson in some]
        prompts = [lesson.prompt for _, lesson in some]
        inputs = open_ended(half, rebuild(processor, rows_of, prompts))
        features = Features(merge_rows(rows_of), rows_of[0].needs, merge_blank(rows_of))
        made = generate(half, inputs, features, max_new_tokens=most)
        new = new_tokens(made, prompt_in(half, inputs)).cpu()
        texts = processor.batch_decode(new, skip_special_tokens=True)
        found |= {at: text.strip() for (at, _), text in zip(some, texts, strict=True)}
    return [found[at] for at in range(len(lessons))]


def score(
    half: Any,
    processor: Any,
    lessons: Sequence[Lesson],
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
