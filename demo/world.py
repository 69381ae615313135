"""The demo's world: what may happen in a clip, drawn at random so that it can be seen and told.

It does not know pixels, colours' values or any model. Lengths are in units of 1/64 of the square
root of the frame's area, times are fractions of the clip from 0 to 1.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from demo.words import (
    BACKGROUNDS,
    COLOURS,
    MOVES,
    SHAPES,
    SIZES,
    Sentence,
    Structure,
    Thing,
    score,
)

__all__ = ["ClipSpec", "Split", "Track", "caption", "place", "sample_clip", "sample_still", "score"]

Split = Literal["trained", "never", "any"]

FIRST: Final = (0.0, 0.45)
"""When the first of two successive actions happens; `SECOND` likewise. The gap lets them be told apart."""
SECOND: Final = (0.55, 1.0)
SPEED_RANGES: Final = {"slowly": (10.5, 14.5), "quickly": (24.5, 40.0)}
"""Units a whole clip: far enough apart to be told from six frames on."""
RADIUS_RANGES: Final = {"small": (5.8, 6.6), "large": (9.6, 10.3)}
MARGIN: Final = 0.8
"""Units kept free between a thing and the edge of the frame."""
INSTANTS: Final = {FIRST: (0.12, 0.32), SECOND: (0.62, 0.80), (0.0, 1.0): (0.25, 0.70)}
"""Where in each span a thing may appear or vanish: six evenly spaced frames see both before and after."""
_HEADINGS: Final = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}
FRAME_SIZES: Final = (
    (64, 64), (96, 96), (128, 128), (160, 160), (96, 128), (120, 160), (72, 96),
    (128, 96), (160, 120), (72, 128), (90, 160), (54, 96), (128, 72), (160, 90),
)  # fmt: skip
"""Heights and widths of written clips: square, 4:3, 3:4, 16:9 and 9:16."""
FRAME_RATES: Final = (8, 10, 12, 15, 20, 24, 25, 30)


@dataclass(frozen=True, kw_only=True, slots=True)
class Leg:
    """One straight movement."""

    start: float
    """Fraction of the clip at which it begins."""
    end: float
    """Fraction of the clip at which it ends."""
    velocity: tuple[float, float]
    """Units a clip, to the right and downwards."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Track:
    """Where one thing is, and when."""

    radius: float
    """Units."""
    origin: tuple[float, float]
    """Centre at the start, units from the left and from the top."""
    legs: tuple[Leg, ...] = ()
    """Movements in order of time."""
    appears_at: float = -1.0
    """Fraction of the clip from which it is seen."""
    vanishes_at: float = 2.0
    """Fraction of the clip from which it is no longer seen."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipSpec:
    """All there is to know about one clip."""

    sentence: Sentence
    """What is said of it."""
    tracks: tuple[Track, ...]
    """One for each thing of the sentence."""
    seed: int
    """Seed of what the sentence leaves open: the background's grain, the shade of a colour."""
    height: int
    """Pixels of the written clip."""
    width: int
    """Pixels of the written clip."""
    frames_per_second: int
    """Of the written clip."""
    duration_seconds: float
    """Of the written clip."""

    @property
    def aspect(self) -> float:
        """Width over height."""
        return self.width / self.height

    @property
    def is_trained(self) -> bool:
        """Whether all its colour and shape pairs stand in training clips."""
        return self.sentence.is_trained


def caption(spec: ClipSpec) -> str:
    """The one right caption of a clip."""
    return str(spec.sentence)


def place(track: Track, time: float) -> tuple[float, float, bool]:
    """Centre in units and whether the thing is seen, at a fraction of the clip."""
    x, y = track.origin
    for leg in track.legs:
        spent = min(max(time - leg.start, 0.0), leg.end - leg.start)
        x += leg.velocity[0] * spent
        y += leg.velocity[1] * spent
    return x, y, track.appears_at <= time < track.vanishes_at


def _thing(rng: random.Random, split: Split) -> Thing:
    while True:
        thing = Thing(size=rng.choice(SIZES), colour=rng.choice(COLOURS), shape=rng.choice(SHAPES))
        if split == "any" or thing.is_trained == (split == "trained"):
            return thing


def _leg(
    rng: random.Random, action: str, span: tuple[float, float], room: tuple[float, float]
) -> Leg | None:
    _, way, speed = action.split()
    heading, (slowest, fastest) = _HEADINGS[way], SPEED_RANGES[speed]
    free = room[0] if heading[0] else room[1]
    fastest = min(fastest, free / (span[1] - span[0]))
    if fastest < slowest:
        return None
    pace = rng.uniform(slowest, fastest)
    return Leg(start=span[0], end=span[1], velocity=(heading[0] * pace, heading[1] * pace))


def _track(
    rng: random.Random, thing: Thing, acts: Sequence[tuple[str, tuple[float, float]]], aspect: float
) -> Track | None:
    radius = rng.uniform(*RADIUS_RANGES[thing.size])
    edge = radius + MARGIN
    size = (64 * math.sqrt(aspect), 64 / math.sqrt(aspect))
    room = (size[0] - 2 * edge, size[1] - 2 * edge)
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
        low, high = edge - min(path), size[axis] - edge - max(path)
        if low > high + 1e-9:
            return None
        origin.append(rng.uniform(low, max(low, high)))
    return Track(
        radius=radius, origin=(origin[0], origin[1]), legs=tuple(legs),
        appears_at=instants["appears"], vanishes_at=instants["disappears"],
    )  # fmt: skip


def _apart(first: Track, second: Track, ordered: bool) -> bool:
    """Whether two things never touch and, where it matters, stand clearly left and right."""
    if ordered and second.origin[0] - first.origin[0] < 12:
        return False
    least = (first.radius + second.radius) * 1.05
    for step in range(9):
        ax, ay, _ = place(first, step / 8)
        bx, by, _ = place(second, step / 8)
        if math.hypot(ax - bx, ay - by) < least:
            return False
    return True


def _actions(rng: random.Random, structure: Structure) -> tuple[str, ...]:
    def one(calm: tuple[str, ...]) -> str:
        return rng.choice(MOVES) if rng.random() < 0.6 else rng.choice(calm)

    instants = ("appears", "disappears")
    if structure is Structure.STILL:
        return ()
    if structure is Structure.ONE:
        return (one(("stays still", *instants)),)
    if structure is Structure.WHILE:
        return one(("stays still", *instants)), one(("stays still", *instants))
    if structure is Structure.RELAY:
        return one(instants), one(instants)
    while True:
        first, second = rng.choice(MOVES), rng.choice(MOVES)
        kind = rng.random()
        if kind >= 0.35:
            return (
                "appears" if kind < 0.6 or kind >= 0.85 else first,
                "disappears" if kind >= 0.6 else second,
            )
        if first.split()[1] != second.split()[1]:
            return first, second


def _sentence(rng: random.Random, split: Split, structure: Structure) -> Sentence:
    things = [_thing(rng, split)]
    pair = structure in (Structure.WHILE, Structure.RELAY)
    if pair or (structure is Structure.STILL and rng.random() < 0.6):
        other = _thing(rng, "trained" if split == "trained" else "any")
        while (other.colour, other.shape) == (things[0].colour, things[0].shape):
            other = _thing(rng, "trained" if split == "trained" else "any")
        things.insert(rng.randrange(2), other)
    return Sentence(
        structure=structure,
        things=tuple(things),
        actions=_actions(rng, structure),
        background=rng.choice(BACKGROUNDS),
    )


def _tracks(rng: random.Random, sentence: Sentence, aspect: float) -> tuple[Track, ...] | None:
    whole, acts = (0.0, 1.0), sentence.actions
    timed: tuple[tuple[tuple[str, tuple[float, float]], ...], ...] = {
        Structure.ONE: lambda: (((acts[0], whole),),),
        Structure.THEN: lambda: (((acts[0], FIRST), (acts[1], SECOND)),),
        Structure.WHILE: lambda: (((acts[0], whole),), ((acts[1], whole),)),
        Structure.RELAY: lambda: (((acts[0], FIRST),), ((acts[1], SECOND),)),
        Structure.STILL: lambda: ((),) * len(sentence.things),
    }[sentence.structure]()
    tracks = [_track(rng, t, a, aspect) for t, a in zip(sentence.things, timed, strict=True)]
    found = [track for track in tracks if track is not None]
    if len(found) < len(tracks):
        return None
    if len(found) == 2:
        ordered = sentence.structure in (Structure.WHILE, Structure.STILL)
        if not _apart(found[0], found[1], ordered):
            return None
        if sentence.structure is Structure.WHILE and all(a in ("appears", "disappears") for a in acts):
            found[1] = _same_instant(found[0], found[1])
    return tuple(found)


def _same_instant(first: Track, second: Track) -> Track:
    """Two sudden events told with "while" happen in the same instant."""
    instant = first.appears_at if first.appears_at >= 0 else first.vanishes_at
    if second.appears_at >= 0:
        return replace(second, appears_at=instant)
    return replace(second, vanishes_at=instant)


def _sample(
    rng: random.Random, split: Split, structures: dict[Structure, int], aspect: float | None
) -> ClipSpec:
    height, width = rng.choice(FRAME_SIZES)
    if aspect is not None:
        height, width = 1000, round(1000 * aspect)
    while True:
        structure = rng.choices(list(structures), list(structures.values()))[0]
        sentence = _sentence(rng, split, structure)
        for _ in range(20):
            if tracks := _tracks(rng, sentence, width / height):
                return ClipSpec(
                    sentence=sentence, tracks=tracks, seed=rng.randrange(1 << 30),
                    height=height, width=width, frames_per_second=rng.choice(FRAME_RATES),
                    duration_seconds=round(rng.uniform(3.0, 8.0), 2),
                )  # fmt: skip


def sample_clip(rng: random.Random, split: Split, *, aspect: float | None = None) -> ClipSpec:
    """A random clip; `never` clips hold at least one colour and shape pair that is kept from training."""
    structures = {Structure.ONE: 25, Structure.THEN: 20, Structure.WHILE: 25, Structure.RELAY: 30}
    return _sample(rng, split, structures, aspect)


def sample_still(rng: random.Random, split: Split, *, aspect: float | None = None) -> ClipSpec:
    """A random picture of one or two things: a clip in which nothing happens."""
    return _sample(rng, split, {Structure.STILL: 1}, aspect)
