"""Draws random tracks for given actions: where a thing of the demo's world is, and when.

Lengths are in units of 1/64 of the square root of the frame's area. Times are fractions of the clip
from 0 to 1.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from penstock_demo.words import MOVES

Span = tuple[float, float]
FIRST: Final = (0.0, 0.45)
"""Span of the first of two successive actions; the gap to the second separates them."""
SECOND: Final = (0.55, 1.0)
SPEED_RANGES: Final = {"slowly": (10.5, 14.5), "quickly": (24.5, 40.0)}
"""Units per clip; the ranges differ enough to be distinguished from six frames on."""
RADIUS_RANGES: Final = {"small": (5.8, 6.6), "large": (9.6, 10.3)}
MARGIN: Final = 0.8
"""Units kept free between a thing and the edge of the frame."""
INSTANTS: Final = {FIRST: (0.12, 0.32), SECOND: (0.62, 0.80), (0.0, 1.0): (0.25, 0.70)}
"""Bounds in each span where a thing may appear or vanish: six even frames show both before and
after."""
_HEADINGS: Final = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Leg:
    """One straight movement."""

    start: float
    """Fraction of the clip at which it begins."""
    end: float
    """Fraction of the clip at which it ends."""
    velocity: tuple[float, float]
    """Units per clip, to the right and downwards."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Track:
    """The path of one thing."""

    radius: float
    """In units."""
    origin: tuple[float, float]
    """Centre at the start, in units from the left and from the top."""
    legs: tuple[Leg, ...] = ()
    """Movements in order of time."""
    appears_at: float = -1.0
    """Fraction of the clip from which it is visible."""
    vanishes_at: float = 2.0
    """Fraction of the clip from which it is no longer visible."""


def place(track: Track, time: float) -> tuple[float, float, bool]:
    """Return the centre in units, and whether the thing is visible, at a fraction of the clip."""
    x, y = track.origin
    for leg in track.legs:
        spent = min(max(time - leg.start, 0.0), leg.end - leg.start)
        x += leg.velocity[0] * spent
        y += leg.velocity[1] * spent
    return x, y, track.appears_at <= time < track.vanishes_at


def _leg(rng: random.Random, action: str, span: Span, room: tuple[float, float]) -> Leg | None:
    _, way, speed = action.split()
    heading, (slowest, fastest) = _HEADINGS[way], SPEED_RANGES[speed]
    free = room[0] if heading[0] else room[1]
    fastest = min(fastest, free / (span[1] - span[0]))
    if fastest < slowest:
        return None
    pace = rng.uniform(slowest, fastest)
    return Leg(start=span[0], end=span[1], velocity=(heading[0] * pace, heading[1] * pace))


def sample_track(
    rng: random.Random, size: str, acts: Sequence[tuple[str, Span]], aspect: float
) -> Track | None:
    """Draw a random track of these actions within a frame of this aspect. Return None if they do
    not fit."""
    radius = rng.uniform(*RADIUS_RANGES[size])
    edge = radius + MARGIN
    frame = (64 * math.sqrt(aspect), 64 / math.sqrt(aspect))
    room = (frame[0] - 2 * edge, frame[1] - 2 * edge)
    legs: list[Leg] = []
    instants = {"appears": -1.0, "disappears": 2.0}
    for action, span in acts:
        if action in instants:
            instants[action] = rng.uniform(*INSTANTS[span])
        elif action in MOVES:
            if (leg := _leg(rng, action, span, room)) is None:
                return None
            legs.append(leg)
    origin = []
    for axis in (0, 1):
        path = [0.0]
        for leg in legs:
            path.append(path[-1] + leg.velocity[axis] * (leg.end - leg.start))
        low, high = edge - min(path), frame[axis] - edge - max(path)
        if low > high + 1e-9:
            return None
        origin.append(rng.uniform(low, max(low, high)))
    return Track(
        radius=radius, origin=(origin[0], origin[1]), legs=tuple(legs),
        appears_at=instants["appears"], vanishes_at=instants["disappears"],
    )  # fmt: skip


def apart(first: Track, second: Track, ordered: bool) -> bool:
    """Return whether two things never touch and, if `ordered`, are clearly left and right."""
    if ordered and second.origin[0] - first.origin[0] < 12:
        return False
    min_distance = (first.radius + second.radius) * 1.05
    for step in range(9):
        ax, ay, _ = place(first, step / 8)
        bx, by, _ = place(second, step / 8)
        if math.hypot(ax - bx, ay - by) < min_distance:
            return False
    return True


def at_same_instant(first: Track, second: Track) -> Track:
    """Make two sudden events that are joined by "while" happen at the same instant."""
    instant = first.appears_at if first.appears_at >= 0 else first.vanishes_at
    if second.appears_at >= 0:
        return replace(second, appears_at=instant)
    return replace(second, vanishes_at=instant)
