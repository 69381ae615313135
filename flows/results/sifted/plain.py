"""Compares the detail of two plain pictures, such as slides, which differ by their words alone.

In windows of about a word, the points of copies differ by a part of their contrast; those of two
words differ by all of it, whatever their size and place have in common.
"""

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.sift.measures import area_weights
from stages.sift.record import COLOUR_SIDE, DETAIL_SIDE, Look

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
    first, second = (rows @ each.detail @ columns.T for each in (one, other))
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
    found: Points = ways @ points**2 @ ways.T - (ways @ points @ ways.T) ** 2
    return found


@cache
def _windows() -> Points:
    fading = np.sin((np.arange(WINDOW) + 0.5) * np.pi / WINDOW) ** 2
    starts = np.arange(0, DETAIL_SIDE - WINDOW + 1, STRIDE)
    found = np.zeros((len(starts), DETAIL_SIDE), np.float32)
    for row, start in zip(found, starts, strict=True):
        row[start : start + WINDOW] = fading / fading.sum()
    return found


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
    found = []
    middles = (np.arange(DETAIL_SIDE) + 0.5) / DETAIL_SIDE
    for share in np.arange(LEAST_SHARE, 1, SHARE_STEP):
        for start in np.arange(0, 1 - share, PLACE_STEP):
            found.append((start + share * middles) * DETAIL_SIDE - 0.5)
    places: Points = np.clip(np.array(found, np.float32), 0, DETAIL_SIDE - 1.001)
    return places
