"""Says which examples each step is of, by the seed alone; knows no example.

An epoch goes through all once, in an order of its own. Those of one step that can go through the
half together do, so many at a time: with prompts of one length, the longest captions first.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

Each = TypeVar("Each")


def examples_of(step: int, count: int, batch: int, seed: int) -> list[int]:
    """Return the places of the examples of a step, of so many; steps count from 0."""
    found: list[int] = []
    first = step * batch
    while len(found) < min(batch, count):
        epoch, at = divmod(first + len(found), count)
        order = list(range(count))
        random.Random(f"{seed} {epoch}").shuffle(order)
        found += order[at : at + min(batch, count) - len(found)]
    return found


def together(
    lessons: Sequence[Each], rows: int, alike: Callable[[Each], object], size: Callable[[Each], int]
) -> Iterator[list[Each]]:
    """Yield those that go through the half together, at most so many."""
    groups: dict[object, list[Each]] = {}
    for lesson in lessons:
        groups.setdefault(alike(lesson), []).append(lesson)
    for group in groups.values():
        ranked = sorted(group, key=size, reverse=True)
        for at in range(0, len(ranked), rows):
            yield ranked[at : at + rows]
