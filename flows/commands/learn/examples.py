"""Divides corrected captions into those that are learned and those that are held back."""

import math
from collections import Counter
from collections.abc import Sequence

from flows.outputs.record.rounds import LEAST_MEDIA, Round, RoundExample

SHARE, HELD_LEAST = 0.2, 8
"""Share of the chunks that is held out, and their least number."""
Examples = list[RoundExample]


def divide(examples: Sequence[RoundExample], rounds: Sequence[Round]) -> tuple[Examples, Examples]:
    """Return the examples to train on, and those to hold out, at most half of the chunks. A medium
    is held out whole, because its chunks are alike; only if there is no other one is it divided.
    What earlier rounds held out is never trained on, and what they trained on is never held out; a
    medium on both sides is trained on. New ones are held out by the smallest hash in their keys, as
    many corrected as accepted chunks in proportion, and `LEAST_MEDIA` if there are as many."""
    by_chunk = len({example.identity for example in examples}) == 1
    known = {example.features: example.identity for example in examples}

    def group_of(example: RoundExample) -> str:
        chunk = example.features
        return chunk if by_chunk else known.get(chunk) or example.identity

    held = {group_of(example) for round_ in rounds for example in round_.held_out}
    seen = {group_of(example) for round_ in rounds for example in round_.examples}
    held -= seen
    groups: dict[str, dict[str, tuple[bool, str]]] = {}
    for example in examples:
        rank = (not example.corrected, example.key)
        group = groups.setdefault(group_of(example), {})
        group[example.features] = min(rank, group.get(example.features, rank))
    ranked = sorted(groups, key=lambda name: min(groups[name].values()))
    sizes = {name: Counter(kind for kind, _ in group.values()) for name, group in groups.items()}
    every, inside = sum(sizes.values(), Counter()), [name for name in ranked if name in held]
    taken = sum((sizes[name] for name in inside), Counter())
    # Of few chunks, half are left to train on.
    wanted = min(max(HELD_LEAST, math.ceil(SHARE * every.total())), every.total() // 2)
    for kind in (False, True, None):  # corrected chunks, accepted ones, all
        share = 1.0 if kind is None else every[kind] / max(1, every.total())
        for name in ranked:
            of, is_known = sizes[name], name in held or name in seen
            enough = (taken.total() if kind is None else taken[kind]) >= math.ceil(wanted * share)
            enough = enough and (kind is not None or len(inside) >= LEAST_MEDIA)
            too_large = (taken + of).total() > every.total() // 2
            if not (is_known or enough or too_large or (kind is not None and not of[kind])):
                held.add(name)
                inside.append(name)
                taken += of
    trained = [example for example in examples if group_of(example) not in held]
    return trained, [example for example in examples if group_of(example) in held]
