"""The demo's world: what may happen in a clip, drawn at random so that it is visible and can be
described.
"""

import random
from dataclasses import dataclass
from typing import Final, Literal

from penstock_demo.tracks import FIRST, SECOND, Span, Track, apart, at_same_instant, sample_track
from penstock_demo.words import (
    BACKGROUNDS,
    COLOURS,
    MOVES,
    SHAPES,
    SIZES,
    Sentence,
    Structure,
    Thing,
)

Split = Literal["trained", "never", "any"]

FRAME_SIZES: Final = (
    (64, 64), (96, 96), (128, 128), (160, 160), (96, 128), (120, 160), (72, 96),
    (128, 96), (160, 120), (72, 128), (90, 160), (54, 96), (128, 72), (160, 90),
)  # fmt: skip
"""Heights and widths of written clips: square, 4:3, 3:4, 16:9 and 9:16."""
FRAME_RATES: Final = (8, 10, 12, 15, 20, 24, 25, 30)


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipSpec:
    """The full description of one clip."""

    sentence: Sentence
    """Sentence that describes it."""
    tracks: tuple[Track, ...]
    """One for each thing of the sentence."""
    seed: int
    """Seed of what the sentence leaves open: the background's grain, the shade of a colour."""
    height: int
    """Height of the written clip in pixels."""
    width: int
    """Width of the written clip in pixels."""
    frames_per_second: int
    """Frames per second of the written clip."""
    duration_seconds: float
    """Length of the written clip in seconds."""

    @property
    def aspect(self) -> float:
        return self.width / self.height

    @property
    def is_trained(self) -> bool:
        """Return whether all its colour and shape pairs occur in training clips."""
        return self.sentence.is_trained


def caption(spec: ClipSpec) -> str:
    """Return the only right caption of a clip."""
    return str(spec.sentence)


def _thing(rng: random.Random, split: Split) -> Thing:
    while True:
        thing = Thing(size=rng.choice(SIZES), colour=rng.choice(COLOURS), shape=rng.choice(SHAPES))
        if split == "any" or thing.is_trained == (split == "trained"):
            return thing


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
    timed: dict[Structure, tuple[tuple[tuple[str, Span], ...], ...]] = {
        Structure.ONE: (tuple((action, whole) for action in acts[:1]),),
        Structure.THEN: (tuple(zip(acts, (FIRST, SECOND), strict=False)),),
        Structure.WHILE: tuple(((action, whole),) for action in acts),
        Structure.RELAY: tuple((act,) for act in zip(acts, (FIRST, SECOND), strict=False)),
        Structure.STILL: ((),) * len(sentence.things),
    }
    tracks = [
        sample_track(rng, t.size, a, aspect)
        for t, a in zip(sentence.things, timed[sentence.structure], strict=True)
    ]
    sampled = [track for track in tracks if track is not None]
    if len(sampled) < len(tracks):
        return None
    if len(sampled) == 2:
        ordered = sentence.structure in (Structure.WHILE, Structure.STILL)
        if not apart(sampled[0], sampled[1], ordered):
            return None
        if sentence.structure is Structure.WHILE and all(
            a in ("appears", "disappears") for a in acts
        ):
            sampled[1] = at_same_instant(sampled[0], sampled[1])
    return tuple(sampled)


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
    """Draw a random clip; a `never` clip contains at least one untrained colour and shape pair."""
    structures = {Structure.ONE: 25, Structure.THEN: 20, Structure.WHILE: 25, Structure.RELAY: 30}
    return _sample(rng, split, structures, aspect)


def sample_still(rng: random.Random, split: Split, *, aspect: float | None = None) -> ClipSpec:
    """Draw a random image of one or two things: a clip in which nothing happens."""
    return _sample(rng, split, {Structure.STILL: 1}, aspect)
