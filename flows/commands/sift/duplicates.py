"""Finds pictures and videos that are copies of each other.

How it finds copies, by how they look:

1. A thumbnail has a perceptual hash of 64 bits: the signs of its lowest frequencies (pHash).
2. Pairs with similar hashes are candidates: few of their bits differ. A crop moves every frequency,
   so the hash of each thumbnail is also compared with those of the central parts of the others.
3. A candidate is confirmed by its pixels: of one framing, no block differs. Otherwise one must be a
   part of the other. A quarter at the lower or upper edge is left out if it differs, since
   subtitles stand there. Colours must agree, too.
4. Two plain pictures, such as slides, differ by their words alone: their detail is compared as a
   whole. In windows of about a word, the points of copies differ by a part of their contrast; those
   of two words differ by all of it, whatever their size and place have in common.
5. A video is compared at fixed fractions of its length.

Of 25 % of frames that are 2 s apart the hashes are equal, and the pixels differ.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import combinations
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from stages.sift.measures import (
    COLOUR_SIDE,
    DETAIL_SIDE,
    FRACTIONS,
    NO_LOOK,
    SIDE,
    Look,
    area_weights,
)

Matrix = NDArray[np.float32]
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
    pairs = [np.zeros((0, 2), np.int64), *search(ones, others, distance)]
    return np.unique(np.concatenate(pairs), axis=0)


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
            for start in range(0, len(ones), BLOCK):  # with the others of their bucket
                block = wanted[start : start + BLOCK]
                low, count = bounds[block], bounds[block + 1] - bounds[block]
                one = np.repeat(np.arange(start, start + len(block)), count)
                offset = np.arange(len(one)) - np.repeat(np.cumsum(count) - count, count)
                other = order[np.repeat(low, count) + offset]
                near = np.bitwise_count(ones[one] ^ others[other]) <= distance
                yield np.stack([one[near], other[near]], axis=1)


S = TypeVar("S", bound=np.generic)
Points = NDArray[Any]
WINDOW, STRIDE = 16, 4
"""Side of a window in points, and the distance of two. Its edges fade: a line that enters one is no
difference."""
LEAST_CONTRAST = 100.0
"""Variance of a window, in levels, from which it shows something."""
SAME_DETAIL = 0.35
"""Largest variance of the difference in a window, as a share of those of both. Copies as JPEG and
at other sizes have at most 0.23, crops 0.28, and words of one length at least 0.41."""
SAME_COLOUR = 12.0
"""Largest difference of a block's mean Cb or Cr, of 255, in copies. Copies have at most 6.2, things
in two colours of one brightness at least 17."""
CROP_SIDE = 200
"""Points along each side to which crops are blurred, since those of a crop are finer."""
LEAST_SHARE, SHARE_STEP, PLACE_STEP = 0.88, 0.004, 0.0025
"""Least share of a side that a crop leaves; steps at which it and its place are looked for."""


def same_detail(one: Look, other: Look, *, cropped: bool = False, mirrored: bool = False) -> bool:
    """Return whether two plain pictures show the same; `cropped`: or one of them a part of what the
    other shows; `mirrored`: if one is turned around. Both are blurred to the size of the smaller
    one."""
    rows, columns = (_blur(min(sides)) for sides in zip(one.shape, other.shape, strict=True))
    first, second = (rows @ look.detail @ columns.T for look in (one, other))
    colours = one.colours, other.colours
    if mirrored:
        second, colours = second[:, ::-1], (colours[0], colours[1][..., ::-1])
    if _agree(*colours) and _differing(first, second) <= SAME_DETAIL:
        return True
    return cropped and (
        _has_part(first, second, *colours) or _has_part(second, first, *colours[::-1])
    )


def _has_part(whole: Points, small: Points, whole_colours: Points, colours: Points) -> bool:
    """Return whether a picture is a part of another one."""
    down = _place(small, whole)
    across = _place(small.T, (area_weights(DETAIL_SIDE, DETAIL_SIDE, *down) @ whole).T)
    part, part_colours = (
        area_weights(side, side, *down) @ points @ area_weights(side, side, *across).T
        for side, points in ((DETAIL_SIDE, whole), (COLOUR_SIDE, whole_colours))
    )
    coarse = _blur(CROP_SIDE)
    differing = _differing(*(coarse @ points @ coarse.T for points in (small, part)))
    return _agree(colours, part_colours) and differing <= SAME_DETAIL


def _agree(one: Points, other: Points) -> bool:
    """Return whether the colours of two pictures agree in all blocks."""
    areas = area_weights(COLOUR_SIDE, COLOUR_SIDE // 2)
    differing = areas @ (one.astype(np.float32) - other) @ areas.T
    return bool((np.abs(differing) <= colour_limit(one, other)).all())


def colour_limit(one: Points, other: Points) -> Points:
    """Return by how much the colours of two pictures, or of pairs of them, may differ."""
    are_known = one.any(axis=(-3, -2, -1)) & other.any(axis=(-3, -2, -1))
    return np.where(are_known, SAME_COLOUR, np.inf)


@cache
def _blur(length: int) -> Points:
    """Return the weights that make a side smaller and larger again."""
    length = min(length, DETAIL_SIDE)
    return area_weights(length, DETAIL_SIDE) @ area_weights(DETAIL_SIDE, length)


def _differing(one: Points, other: Points) -> float:
    """Return the largest variance of the difference in a window, as a share of those of both."""
    own, others, apart = (_variances(points) for points in (one, other, one - other))
    shown = np.maximum(own, others) > LEAST_CONTRAST
    return float((apart[shown] / (own + others)[shown]).max(initial=0))


def _variances(points: Points) -> Points:
    ways = _windows()
    variances: Points = ways @ points**2 @ ways.T - (ways @ points @ ways.T) ** 2
    return variances


@cache
def _windows() -> Points:
    fading = np.sin((np.arange(WINDOW) + 0.5) * np.pi / WINDOW) ** 2
    starts = np.arange(0, DETAIL_SIDE - WINDOW + 1, STRIDE)
    windows = np.zeros((len(starts), DETAIL_SIDE), np.float32)
    for row, start in zip(windows, starts, strict=True):
        row[start : start + WINDOW] = fading / fading.sum()
    return windows


def _place(cropped: Points, whole: Points) -> tuple[float, float]:
    """Return where the rows of a crop begin in the whole picture, and their share of it: where the
    means of rows are most alike."""
    own, means, places = cropped.mean(axis=1), whole.mean(axis=1), _places()
    low = places.astype(np.int64)
    seen = means[low] + (means[low + 1] - means[low]) * (places - low)
    seen -= seen.mean(axis=1, keepdims=True)
    alike = seen @ (own - own.mean()) / (np.linalg.norm(seen, axis=1) + 1)
    first, second = map(float, places[int(alike.argmax()), :2])
    share = second - first
    return (first + 0.5 - share / 2) / DETAIL_SIDE, share


@cache
def _places() -> Points:
    """Return where the middles of the points of a crop lie in the whole picture, in points of it,
    for each share and place of a crop [n, DETAIL_SIDE]."""
    crops = []
    middles = (np.arange(DETAIL_SIDE) + 0.5) / DETAIL_SIDE
    for share in np.arange(LEAST_SHARE, 1, SHARE_STEP):
        for start in np.arange(0, 1 - share, PLACE_STEP):
            crops.append((start + share * middles) * DETAIL_SIDE - 0.5)
    return np.clip(np.array(crops, np.float32), 0, DETAIL_SIDE - 1.001)


Stored = Sequence[Look]
"""One per item."""
Thumbs = NDArray[np.float32]
"""Some of them [n, SIDE, SIDE]. A million would take 16 GB."""
FREQUENCIES = 8
"""Lowest frequencies along each side that the hash takes."""
DISTANCE = 10
"""Most differing bits of a candidate. Of 240 crops by 5 %, 98 % differ in no more."""
HASHED_SHARES = (0.95, 0.9)
"""Central parts whose hashes are compared: those of all crops are near to one of them."""
CROPS = ((0.985, 3), (0.97, 5), (0.96, 7), (0.95, 9), (0.935, 9), (0.92, 9), (0.905, 11))
"""Share of a side that a crop leaves, and at how many places along it a crop is looked for."""
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
ROWS = (slice(None), slice(0, -COARSE // 4), slice(COARSE // 4, None))
"""Blocks that are compared: all, or all but those of an outer quarter."""
CROP_COLOUR = 0.5
"""Colours of a crop may differ by so many standard deviations more, since its place is a guess."""
BATCH = 256
"""Pairs that are compared at once."""
LEAST_ALIKE = 4 / 5
"""Share of the thumbnails of two videos that must agree."""
LENGTHS = 0.05
"""Share by which the lengths of two copies of a video may differ."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fingerprint:
    """One content to be compared."""

    looks: Sequence[Look]
    """Of an image one, of a video one per fraction."""
    seconds: float
    """Length of a video; 0 for an image."""


COPIES_VERSION = 2
"""Version of what counts as a copy: pairs are stored under it."""


def pairs_of(items: Sequence[Fingerprint], *, mirrored: bool) -> Pairs:
    """Return the pairs of items that are copies of each other, by number, of shape [n, 2]."""
    pairs = [np.zeros((0, 2), np.int64)]
    for of_these, are_videos in ((_images, False), (_videos, True)):
        members = np.array([n for n, item in enumerate(items) if bool(item.seconds) is are_videos])
        if len(members):
            pairs.append(members[of_these([items[at] for at in members], mirrored)])
    return np.concatenate(pairs)


def _images(items: Sequence[Fingerprint], mirrored: bool) -> Pairs:
    looks = [item.looks[0] for item in items]
    pairs = _candidates(looks, mirrored)
    return pairs[_confirmed(looks, pairs, mirrored)]


def _videos(items: Sequence[Fingerprint], mirrored: bool) -> Pairs:
    # A video that lost frames to damage gets flat ones, which are equal to nothing.
    lost = [NO_LOOK] * len(FRACTIONS)
    looks_of = [item.looks if len(item.looks) == len(lost) else lost for item in items]
    slots = [[looks[at] for looks in looks_of] for at in range(len(lost))]
    candidates = [_candidates(looks, mirrored) for looks in slots]
    pairs = np.unique(np.concatenate(candidates), axis=0)
    seconds = np.array([item.seconds for item in items])[pairs]
    apart = np.abs(seconds[:, 0] - seconds[:, 1])
    pairs = pairs[apart <= np.maximum(LENGTHS * seconds.max(axis=1, initial=0), 0.5)]
    # Where one video is flat and the other is not, they differ; where both are, nothing is known.
    known = [~_flat(looks)[pairs].all(axis=1) for looks in slots]
    alike = [_confirmed(looks, pairs, mirrored) & k for looks, k in zip(slots, known, strict=True)]
    count, total = np.sum(alike, axis=0), np.sum(known, axis=0)
    same: Pairs = pairs[(count > 0) & (count >= LEAST_ALIKE * total)]
    return same


def _some(looks: Stored, numbers: Iterable[int]) -> Thumbs:
    return np.array([looks[at].thumb for at in numbers], np.float32).reshape(-1, SIDE, SIDE)


def _of_all(looks: Stored, measure: Callable[[Thumbs], NDArray[S]]) -> NDArray[S]:
    """Return a measure of all thumbnails, with a batch of them in memory at a time."""
    parts = [range(at, min(at + BATCH, len(looks))) for at in range(0, len(looks), BATCH)]
    return np.concatenate([measure(_some(looks, part)) for part in parts or [range(0)]])


def _flat(looks: Stored) -> NDArray[np.bool_]:
    return _of_all(looks, lambda some: some.std(axis=(1, 2)) < FLAT)


def _candidates(looks: Stored, mirrored: bool) -> Pairs:
    """Return the pairs of looks with similar hashes, each once."""
    at = np.flatnonzero(~_flat(looks))
    whole = _of_all(looks, hashes)[at]
    others = [whole]
    others += [_of_all(looks, partial(hashes, share=share))[at] for share in HASHED_SHARES]
    others += [_of_all(looks, lambda some: hashes(some[:, :, ::-1]))[at]] if mirrored else []
    similar = [near_pairs(whole, other, DISTANCE) for other in others]
    pairs = np.sort(at[np.concatenate(similar)].reshape(-1, 2), axis=1)
    return np.unique(pairs[pairs[:, 0] < pairs[:, 1]], axis=0)


def hashes(thumbs: Thumbs, share: float = 1.0) -> NDArray[np.uint64]:
    """Return the perceptual hash of the central `share` of each thumbnail."""
    waves = np.arange(FREQUENCIES)[:, None] * (np.arange(FINE) + 0.5) * np.pi / FINE
    ways = (np.cos(waves) @ area_weights(SIDE, FINE, (1 - share) / 2, share)).astype(np.float32)
    coefficients = (ways @ thumbs @ ways.T).reshape(len(thumbs), FREQUENCIES**2)
    bits = coefficients > np.median(coefficients, axis=1, keepdims=True)
    return np.packbits(bits, axis=1).view(np.uint64)[:, 0]


def _confirmed(looks: Stored, pairs: Pairs, mirrored: bool) -> NDArray[np.bool_]:
    confirmed = np.zeros(len(pairs), np.bool_)
    plain = np.array([bool(look.packed) for look in looks])
    for start in range(0, len(pairs), BATCH):
        part = pairs[start : start + BATCH]
        one, other = _Planes.of(looks, part[:, 0]), _Planes.of(looks, part[:, 1])
        is_plain = plain[part].all(axis=1)
        same, alike = _same(one, other)
        turned = _same(one, other.mirrored())[0] & mirrored
        parts = np.zeros_like(same)
        # What is alike in grey and differs in colour is no crop, at whatever place it looks so.
        left = np.flatnonzero(~(alike | turned) | is_plain)
        for whole, cropped in ((one, other), (other, one)):
            parts[left] |= _is_part(cropped.at(left), whole.at(left))
        is_pair = same | turned | parts
        for at in np.flatnonzero(is_plain & is_pair):
            a, b = (looks[number] for number in part[at])
            is_pair[at] = same_detail(a, b, cropped=bool(parts[at])) or bool(
                turned[at] and same_detail(a, b, mirrored=True)
            )
        confirmed[start : start + BATCH] = is_pair
    return confirmed


@dataclass(frozen=True, kw_only=True, slots=True)
class _Planes:
    """What is compared of some looks."""

    looks: Stored
    grey: Thumbs
    turn: int = 1
    """-1: mirrored."""

    @classmethod
    def of(cls, looks: Stored, numbers: Iterable[int]) -> "_Planes":
        return cls(looks=[looks[at] for at in numbers], grey=_some(looks, numbers))

    def at(self, numbers: NDArray[np.int64]) -> "_Planes":
        return _Planes(looks=[self.looks[at] for at in numbers], grey=self.grey[numbers])

    def mirrored(self) -> "_Planes":
        return _Planes(looks=self.looks, grey=self.grey[..., ::-1], turn=-1)

    def colours(self, numbers: Iterable[int]) -> NDArray[np.float32]:
        """Return the planes of some of them [n, 2, COLOUR_SIDE, COLOUR_SIDE]."""
        planes = np.array([self.looks[at].colours for at in numbers], np.float32)
        return planes[..., :: self.turn]


def _agreed(grey: Sequence[NDArray[np.bool_]], colours: Points, limit: Points) -> NDArray[np.bool_]:
    """Return which pairs agree in grey and in colour. `grey`: whether they do in each of ROWS;
    `colours`: how their blocks differ [..., 2, COARSE, COARSE], by `limit` at most."""
    most = [np.abs(colours[..., rows, :]).max(axis=(-3, -2, -1)) for rows in ROWS]
    upper, lower = (part <= limit for part in most[1:])
    # Pale subtitles may differ in colour alone.
    whole = (upper | lower) & (most[0] <= 2 * limit)
    agreed: NDArray[np.bool_] = np.where(grey[0], whole, (grey[1] & upper) | (grey[2] & lower))
    return agreed


def _same(one: _Planes, other: _Planes) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which pairs have one framing, and no block that differs; and those that are so, or
    would be by their grey alone."""
    areas = area_weights(SIDE, FINE)
    small = areas @ one.grey @ areas.T
    differing = small - areas @ other.grey @ areas.T
    differing -= np.median(differing, axis=(1, 2), keepdims=True)
    side = FINE // COARSE
    blocks = np.abs(differing).reshape(-1, COARSE, side, COARSE, side).mean(axis=(2, 4))
    limit = np.minimum(SAME, small.std(axis=(1, 2)) / 2)
    most = blocks.max(axis=2)
    grey = [most[:, rows].max(axis=1) <= limit for rows in ROWS]
    same = np.zeros(len(small), np.bool_)
    near = np.flatnonzero(np.any(grey, axis=0))
    if len(near):
        own, others = one.colours(near), other.colours(near)
        areas = area_weights(COLOUR_SIDE, COARSE)
        colours = areas @ (own - others) @ areas.T
        same[near] = _agreed([mask[near] for mask in grey], colours, colour_limit(own, others))
    return same, same | grey[0]


def _is_part(cropped: _Planes, whole: _Planes) -> NDArray[np.bool_]:
    """Return which looks are a crop of the other of their pair."""
    areas = area_weights(SIDE, COARSE)
    small = areas @ cropped.grey @ areas.T
    crops = np.zeros(len(small), np.bool_)
    if not len(small):
        return crops
    for share, count in CROPS:
        starts = np.linspace(0, 1 - share, count)
        differing = _parts(whole.grey, starts, share) - small[:, None, None]
        upper, lower = (_near(differing, small, rows) for rows in ROWS[1:])
        near = np.flatnonzero((upper | lower).any(axis=(1, 2)))
        if not len(near):
            continue
        grey = [_near(differing[near], small[near], ROWS[0]), upper[near], lower[near]]
        areas = area_weights(COLOUR_SIDE, COARSE)
        planes, others = cropped.colours(near), whole.colours(near)
        own = areas @ planes @ areas.T
        seen = [_parts(others[:, plane], starts, share) for plane in range(2)]
        limit = CROP_COLOUR * own.std(axis=(2, 3)).max(axis=1) + colour_limit(planes, others)
        colours = np.stack(seen, axis=3) - own[:, None, None]
        crops[near] |= _agreed(grey, colours, limit[:, None, None]).any(axis=(1, 2))
    return crops


def _near(differing: Points, small: Points, rows: slice) -> NDArray[np.bool_]:
    """Return at which places of a crop no block of these rows differs [n, starts, starts]."""
    here = differing[..., rows, :]
    limit = SAME_CROP * (small[:, rows].std(axis=(1, 2)) + FLAT)
    limit = np.broadcast_to(limit[:, None, None], here.shape[:3])
    # A median takes longer, and few places get so far.
    near: NDArray[np.bool_] = np.ptp(here, axis=(3, 4)) <= 2 * limit
    some = here[near].reshape(int(near.sum()), here.shape[3] * here.shape[4])
    most = np.abs(some - np.median(some, axis=1, keepdims=True)).max(axis=1)
    near[near] = most <= limit[near]
    return near


def _parts(planes: Thumbs, starts: NDArray[np.float64], share: float) -> NDArray[np.float32]:
    """Return the blocks of the parts of planes that begin at `starts`, down and to the right
    [n, starts, starts, COARSE, COARSE]."""
    length = planes.shape[-1]
    ways = np.concatenate([area_weights(length, COARSE, float(at), share) for at in starts])
    shape = (len(planes), len(starts), COARSE, len(starts), COARSE)
    blocks: NDArray[np.float32] = (ways @ planes @ ways.T).reshape(shape).transpose(0, 1, 3, 2, 4)
    return blocks
