"""Groups pictures and videos that are copies of each other, by their thumbnails.

How it works:

1. A thumbnail has a perceptual hash of 64 bits: the signs of its lowest frequencies (pHash).
2. Pairs with similar hashes are candidates. A crop moves every frequency, so the hash
   of each thumbnail is also compared with those of the central parts of the others.
3. A candidate is confirmed by its pixels: of one framing, no block differs. Otherwise one must be
   a part of the other. A quarter at the lower or upper edge is left out, where subtitles stand.
4. A video is compared at fixed fractions of its length.
5. Confirmed pairs are joined to groups.

Of 25 % of frames that are 2 s apart the hashes are equal, and the pixels differ.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flows.results.sifted.hamming import near_pairs
from stages.sift.measures import area_weights
from stages.sift.record import FRACTIONS, SIDE

Stored = Sequence[NDArray[np.uint8]]
"""Grey thumbnails, one per item."""
Thumbs = NDArray[np.float32]
"""Some of them [n, SIDE, SIDE]. A million would take 16 GB."""
Pairs = NDArray[np.int64]
"""Numbers of two items each [n, 2]."""
FREQUENCIES = 8
"""Lowest frequencies along each side that the hash takes."""
DISTANCE = 10
"""Most differing bits of a candidate. Of 240 crops by 5 %, 98 % differ in no more."""
CROPS = ((0.95, 0.00625), (0.9, 0.0125))
"""Share of a side that a crop leaves, and the step at which its place is looked for."""
FLAT = 4.0
"""Standard deviation, of 255, below which a thumbnail shows too little to be recognized."""
SAME = 6.0
"""Largest mean difference of a block, of 255, in copies of one framing. Copies as JPEG and at other
sizes have at most 5.2, frames of moving scenes 2 s apart at least 6.8."""
SAME_CROP = 0.12
"""The same for crops, in standard deviations of the picture: 95 % of crops by 5 % have at most
0.112, and frames of a slow pan 2 s apart 0.128."""
FINE, COARSE = 32, 8
"""Points along each side that are compared, of one framing and of a crop."""
BATCH = 256
"""Pairs that are compared at once."""
LEAST_ALIKE = 4 / 5
"""Share of the thumbnails of two videos that must agree."""
LENGTHS = 0.05
"""Share by which the lengths of two copies of a video may differ."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fingerprint:
    """One content to be compared."""

    thumbs: NDArray[np.uint8]
    """Of an image one, of a video one per fraction [n, SIDE, SIDE]."""
    seconds: float
    """Length of a video; 0 for an image."""


def groups_of(items: Sequence[Fingerprint], *, mirrored: bool) -> NDArray[np.int64]:
    """Return the number of the group of each item, which is that of its first member."""
    pairs = [np.zeros((0, 2), np.int64)]
    for of_these, are_videos in ((_images, False), (_videos, True)):
        members = np.array([n for n, item in enumerate(items) if bool(item.seconds) is are_videos])
        if len(members):
            pairs.append(members[of_these([items[at] for at in members], mirrored)])
    ends, group = np.concatenate(pairs).T, np.arange(len(items))
    while True:  # each takes the smaller number of a pair, then that one's own
        smaller, before = group[ends].min(axis=0), group.copy()
        for side in ends:
            np.minimum.at(group, before[side], smaller)
            np.minimum.at(group, side, smaller)
        group = group[group]
        if np.array_equal(group, before):
            return group


def _images(items: Sequence[Fingerprint], mirrored: bool) -> Pairs:
    thumbs = [item.thumbs[0] for item in items]
    pairs = _candidates(thumbs, mirrored)
    found: Pairs = pairs[_confirmed(thumbs, pairs, mirrored)]
    return found


def _videos(items: Sequence[Fingerprint], mirrored: bool) -> Pairs:
    # A video that lost thumbnails to damage gets flat ones, which are equal to nothing.
    lost = np.zeros((len(FRACTIONS), SIDE, SIDE), np.uint8)
    thumbs_of = [item.thumbs if len(item.thumbs) == len(lost) else lost for item in items]
    slots = [[thumbs[at] for thumbs in thumbs_of] for at in range(len(lost))]
    found = [_candidates(thumbs, mirrored) for thumbs in slots]
    pairs = np.unique(np.concatenate(found), axis=0)
    seconds = np.array([item.seconds for item in items])[pairs]
    apart = np.abs(seconds[:, 0] - seconds[:, 1])
    pairs = pairs[apart <= np.maximum(LENGTHS * seconds.max(axis=1, initial=0), 0.5)]
    # Where one video is flat and the other is not, they differ; where both are, nothing is known.
    known = [~_flat(thumbs)[pairs].all(axis=1) for thumbs in slots]
    alike = [
        _confirmed(thumbs, pairs, mirrored) & k for thumbs, k in zip(slots, known, strict=True)
    ]
    count, total = np.sum(alike, axis=0), np.sum(known, axis=0)
    same: Pairs = pairs[(count > 0) & (count >= LEAST_ALIKE * total)]
    return same


def _some(thumbs: Stored, numbers: Iterable[int]) -> Thumbs:
    return np.array([thumbs[at] for at in numbers], np.float32).reshape(-1, SIDE, SIDE)


def _of_all(thumbs: Stored, measure: Callable[[Thumbs], NDArray[Any]]) -> NDArray[Any]:
    """Return a measure of all thumbnails, with a batch of them in memory at a time."""
    parts = [range(at, min(at + BATCH, len(thumbs))) for at in range(0, len(thumbs), BATCH)]
    return np.concatenate([measure(_some(thumbs, part)) for part in parts or [range(0)]])


def _flat(thumbs: Stored) -> NDArray[np.bool_]:
    return _of_all(thumbs, lambda some: some.std(axis=(1, 2)) < FLAT)


def _candidates(thumbs: Stored, mirrored: bool) -> Pairs:
    """Return the pairs of thumbnails with similar hashes, each once."""
    at = np.flatnonzero(~_flat(thumbs))
    whole = _of_all(thumbs, hashes)[at]
    others = [whole]
    others += [_of_all(thumbs, partial(hashes, share=share))[at] for share, _ in CROPS]
    others += [_of_all(thumbs, lambda some: hashes(some[:, :, ::-1]))[at]] if mirrored else []
    found = [near_pairs(whole, other, DISTANCE) for other in others]
    pairs = np.sort(at[np.concatenate(found)].reshape(-1, 2), axis=1)
    return np.unique(pairs[pairs[:, 0] < pairs[:, 1]], axis=0)


def hashes(thumbs: Thumbs, share: float = 1.0) -> NDArray[np.uint64]:
    """Return the perceptual hash of the central `share` of each thumbnail."""
    waves = np.arange(FREQUENCIES)[:, None] * (np.arange(FINE) + 0.5) * np.pi / FINE
    ways = (np.cos(waves) @ area_weights(SIDE, FINE, (1 - share) / 2, share)).astype(np.float32)
    found = (ways @ thumbs @ ways.T).reshape(len(thumbs), FREQUENCIES**2)
    bits = found > np.median(found, axis=1, keepdims=True)
    packed: NDArray[np.uint64] = np.packbits(bits, axis=1).view(np.uint64)[:, 0]
    return packed


def _confirmed(thumbs: Stored, pairs: Pairs, mirrored: bool) -> NDArray[np.bool_]:
    """Return which pairs show the same."""
    found = np.zeros(len(pairs), np.bool_)
    for start in range(0, len(pairs), BATCH):
        part = slice(start, start + BATCH)
        one, other = _some(thumbs, pairs[part, 0]), _some(thumbs, pairs[part, 1])
        same = _same(one, other)
        if mirrored:
            same |= _same(one, other[:, :, ::-1])
        left = np.flatnonzero(~same)
        for whole, cropped in ((one, other), (other, one)):
            same[left] |= _is_part(cropped[left], whole[left])
        found[part] = same
    return found


def _same(one: Thumbs, other: Thumbs) -> NDArray[np.bool_]:
    """Return which pairs have one framing, and no block that differs."""
    areas = area_weights(SIDE, FINE)
    small = areas @ one @ areas.T
    differing = small - areas @ other @ areas.T
    differing -= np.median(differing, axis=(1, 2), keepdims=True)
    side = FINE // COARSE
    blocks = np.abs(differing).reshape(-1, COARSE, side, COARSE, side).mean(axis=(2, 4))
    limit = np.minimum(SAME, small.std(axis=(1, 2)) / 2)
    edge = COARSE // 4
    found: NDArray[np.bool_] = np.zeros(len(one), np.bool_)
    for rows in (slice(0, -edge), slice(edge, None)):
        found |= blocks[:, rows].max(axis=(1, 2)) <= limit
    return found


def _is_part(cropped: Thumbs, whole: Thumbs) -> NDArray[np.bool_]:
    """Return which thumbnails are a crop of the other of their pair."""
    areas, edge = area_weights(SIDE, COARSE), COARSE // 4
    if not len(cropped):
        return np.zeros(0, np.bool_)
    small = areas @ cropped @ areas.T
    found = np.zeros(len(cropped), np.bool_)
    for share, step in CROPS:
        starts = np.arange(0, 1 - share + step / 2, step)
        ways = np.concatenate([area_weights(SIDE, COARSE, float(start), share) for start in starts])
        shape = (len(whole), len(starts), COARSE, len(starts), COARSE)
        seen = (ways @ whole @ ways.T).reshape(shape)
        differing = seen.transpose(0, 1, 3, 2, 4) - small[:, None, None]
        for rows in (slice(0, -edge), slice(edge, None)):
            here = differing[..., rows, :]
            here = np.abs(here - np.median(here, axis=(3, 4), keepdims=True))
            limit = SAME_CROP * (small[:, rows].std(axis=(1, 2)) + FLAT)
            found |= here.max(axis=(3, 4)).min(axis=(1, 2)) <= limit
    return found
