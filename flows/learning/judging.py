"""Holds examples out of training, and decides whether a new adapter is better on them."""

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

from flows.results.rounds import Round, corrections_of, exact, loss_of

SHARE, HELD_LEAST = 0.2, 8
"""Share of the chunks that is held out, and their least number."""
SAMPLES, LOWER = 20, 19
"""Bootstrap samples of the held-out corrections, and in how many of them the loss must be lower."""
Examples = list[dict[str, Any]]


def divide(
    examples: Sequence[dict[str, Any]], rounds: Sequence[Round]
) -> tuple[Examples, Examples]:
    """Return the examples to train on, and those to hold out. A chunk is held out under all its
    prompts. What earlier rounds held out is never trained on, and what they trained on is never
    held out. New ones are held out by the hash in their key, as many corrected as accepted ones in
    proportion."""
    held = {each["features"] for round_ in rounds for each in round_["held_out"]}
    seen = {each["features"] for round_ in rounds for each in round_["examples"]}
    ranks: dict[str, tuple[bool, str]] = {}
    for each in examples:
        rank = (not each["corrected"], each["key"])
        ranks[each["features"]] = min(rank, ranks.get(each["features"], rank))
    ranked = sorted(ranks, key=ranks.__getitem__)
    # Of few chunks, half are left to train on.
    wanted = min(max(HELD_LEAST, math.ceil(SHARE * len(ranked))), len(ranked) // 2)
    share = wanted / max(1, len(ranked))
    for accepted in (False, True):
        of_kind = [chunk for chunk in ranked if ranks[chunk][0] is accepted]
        missing = math.ceil(share * len(of_kind)) - len(held.intersection(of_kind))
        held |= set([chunk for chunk in of_kind if chunk not in held | seen][: max(0, missing)])
    missing = wanted - len(held.intersection(ranked))
    rest = [chunk for chunk in ranked if chunk not in held | seen]
    held |= set(rest[: max(0, missing)])
    trained = [each for each in examples if each["features"] not in held]
    return trained, [each for each in examples if each["features"] in held]


def times_lower(round_: Round, seed: int) -> int:
    """Return in how many bootstrap samples of the held-out corrections the new adapter's mean loss
    per token is lower."""
    before, after = (corrections_of(round_, name) for name in ("before", "after"))
    draw, places = random.Random(f"{seed} bootstrap"), range(len(before))
    lower = 0
    for _ in range(SAMPLES):
        drawn = draw.choices(places, k=len(places))
        losses = [loss_of([scores[at] for at in drawn]) for scores in (before, after)]
        lower += losses[1] < losses[0]
    return lower


def is_better(round_: Mapping[str, Any]) -> bool:
    """Return whether the new adapter is better on the held-out corrections, and not worse on all
    held-out captions, neither in loss nor in exact ones."""
    before, after = round_["before"], round_["after"]
    not_worse = loss_of(after) <= loss_of(before) and exact(after) >= exact(before)
    return not_worse and bool(round_["lower"] >= LOWER)
