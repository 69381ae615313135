"""Broken copies of small files, made with a fixed seed: cut, zeroed, flipped, spliced."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

SEED = 20261120


def mutate(data: bytes, other: bytes, way: int, rng: np.random.Generator) -> bytes:
    """One broken copy of `data`; `way` counts through the four kinds of damage."""
    broken = bytearray(data)
    at = int(rng.integers(len(data)))
    # Short ranges break a field, long ones lose whole frames.
    length = 1 + int(len(data) * rng.random() ** 4)
    if way % 4 == 0:
        del broken[max(1, at) :]
    elif way % 4 == 1:
        broken[at : at + length] = bytes(len(broken[at : at + length]))
    elif way % 4 == 2:
        for place in rng.integers(len(data), size=int(rng.integers(1, 40))):
            broken[place] ^= 1 << int(rng.integers(8))
    else:
        start = int(rng.integers(len(other)))
        broken[at : at + int(rng.integers(2)) * length] = other[start : start + length]
    return bytes(broken)


def write_mutations(sources: Sequence[Path], folder: Path, count: int) -> Iterator[Path]:
    """`count` broken copies in all, equally many of each source and kind."""
    rng = np.random.default_rng(SEED)
    wholes = [path.read_bytes() for path in sources]
    for number in range(count):
        which = number % len(wholes)
        way = number // len(wholes)
        data = mutate(wholes[which], wholes[(which + 1) % len(wholes)], way, rng)
        path = folder / f"{number:03d}{sources[which].suffix}"
        path.write_bytes(data)
        yield path
