"""Finds pairs of similar 64-bit hashes, by the number of bits that differ."""

from collections.abc import Iterator
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Pairs = NDArray[np.int64]
ALL_PAIRS = 1 << 14
"""Up to so many hashes, all pairs are compared: 0.3 s."""
BLOCK = 1 << 11
"""Hashes that are compared with all others at once."""
BANDS, BAND_BITS = 4, 16
"""A hash has so many bands. Of two that differ in fewer than BANDS * (n + 1) bits, at least one
band differs in at most n."""


def near_pairs(ones: Hashes, others: Hashes, distance: int) -> Pairs:
    """Return the numbers of all pairs of one of `ones` and one of `others` that differ in at most
    `distance` bits, each pair once."""
    search = _all_pairs if len(ones) <= ALL_PAIRS else _by_bands
    found = [np.zeros((0, 2), np.int64), *search(ones, others, distance)]
    return np.unique(np.concatenate(found), axis=0)


def _all_pairs(ones: Hashes, others: Hashes, distance: int) -> Iterator[Pairs]:
    for start in range(0, len(ones), BLOCK):
        differing = np.bitwise_count(ones[start : start + BLOCK, None] ^ others[None])
        yield np.argwhere(differing <= distance) + np.array((start, 0))


def _by_bands(ones: Hashes, others: Hashes, distance: int) -> Iterator[Pairs]:
    """Yield pairs that agree in one band, but for a few bits of it."""
    most = distance // BANDS
    turned = [
        sum(1 << b for b in bits)
        for n in range(most + 1)
        for bits in combinations(range(BAND_BITS), n)
    ]
    for band in range(BANDS):
        shift, mask = np.uint64(band * BAND_BITS), np.uint64((1 << BAND_BITS) - 1)
        keys = (others >> shift) & mask
        order = np.argsort(keys, kind="stable")
        bounds = np.searchsorted(keys[order], np.arange((1 << BAND_BITS) + 1, dtype=np.uint64))
        own = ((ones >> shift) & mask).astype(np.int64)
        for bits in turned:
            wanted = own ^ bits
            for start in range(0, len(ones), BLOCK):
                yield _close(ones, others, order, bounds, wanted, start, distance)


def _close(
    ones: Hashes,
    others: Hashes,
    order: NDArray[np.int64],
    bounds: NDArray[np.int64],
    wanted: NDArray[np.int64],
    start: int,
    distance: int,
) -> Pairs:
    """Return the near pairs of a block of `ones` with the others of their bucket."""
    here = wanted[start : start + BLOCK]
    low, count = bounds[here], bounds[here + 1] - bounds[here]
    one = np.repeat(np.arange(start, start + len(here)), count)
    offset = np.arange(len(one)) - np.repeat(np.cumsum(count) - count, count)
    other = order[np.repeat(low, count) + offset]
    near = np.bitwise_count(ones[one] ^ others[other]) <= distance
    return np.stack([one[near], other[near]], axis=1)
