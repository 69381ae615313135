"""Scores an adapter on held-out examples."""

from collections.abc import Sequence
from typing import Any

import torch

from stages.decode.engines.transformers import generate_rows
from stages.decode.generate_kwargs import make_greedy
from stages.tune.examples import TrainingExample, group_batches, loss_of

SHOWN = 8
"""Captions that are recorded for the report."""


def losses_of(half: Any, processor: Any, examples: Sequence[TrainingExample], rows: int) -> float:
    """Return the mean loss per token of these examples."""
    tokens = sum(len(example.ids) for example in examples)
    with torch.no_grad():
        total = sum(float(loss_of(half, processor, some)) for some in group_batches(examples, rows))
    return total / max(1, tokens)


def captions_of(
    half: Any, processor: Any, examples: Sequence[TrainingExample], rows: int, max_new_tokens: int
) -> list[str]:
    """Return the generated captions of these examples, in order."""
    make_greedy(half, processor)
    found: dict[int, str] = {}
    for some in group_batches(examples, rows):
        shown = [example.row for example in some]
        captions = generate_rows(
            half, processor, shown, [each.prompt for each in some], max_new_tokens
        )
        found |= {id(each): one.caption for each, one in zip(some, captions, strict=True)}
    return [found[id(example)] for example in examples]


def score(
    half: Any,
    processor: Any,
    examples: Sequence[TrainingExample],
    rows: int,
    max_new_tokens: int,
) -> dict[str, Any]:
    """Return the scores of the half on these captions: loss per token, share of exact captions,
    share of common words, and samples."""
    captions = captions_of(half, processor, examples, rows, max_new_tokens)
    pairs = [(one, example.caption) for one, example in zip(captions, examples, strict=True)]
    return {
        "loss": losses_of(half, processor, examples, rows),
        "exact": sum(one == other for one, other in pairs) / max(1, len(pairs)),
        "words": sum(alike(one, other) for one, other in pairs) / max(1, len(pairs)),
        "samples": [{"said": one, "right": other} for one, other in pairs[:SHOWN]],
    }


def alike(one: str, other: str) -> float:
    """Return the F1 of the words of two texts, as in SQuAD (Rajpurkar et al. 2016)."""
    first, second = one.lower().split(), other.lower().split()
    left = list(second)
    common = 0
    for word in first:
        if word in left:
            left.remove(word)
            common += 1
    return 2 * common / max(1, len(first) + len(second))
