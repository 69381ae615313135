"""Draws the texts of one training step, and says which of them are true of a picture.

It does not know pixels, tokens or models. Texts of pairs that are never trained are never drawn.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from penstock_demo.dual.scenes import TRAINED, Placed, Scene
from penstock_demo.words import BACKGROUNDS, COLOURS, SHAPES

TEMPLATES: Final = (
    "a photo of {}",
    "a photo of {}",
    "a {}",
    "{}",
    "a photo of a {}",
    "a picture of a {}",
    "an image of one {}",
    "there is a {} here",
)
"""Texts in which a thing is told; the first is the program's own."""
OF_COLOUR: Final = ("something {}", "a {} thing", "a photo of {}", "{}", "a photo of something {}")
OF_GROUND: Final = ("a {} background", "a photo of a {} background", "{} background")
OF_NOTHING: Final = ("nothing", "a photo of nothing", "background", "a photo of background")
NOISE: Final = 4
"""Texts of no meaning in each step: true of no picture."""
LETTERS: Final = "abcdefghijklmnopqrstuvwxyz"
IGNORED: Final = -1.0
"""Truth of a text that nobody can tell."""
GROUPS: Final = tuple(
    slice(end - length, end)
    for length, end in zip(
        (len(TRAINED), len(COLOURS), len(SHAPES), len(BACKGROUNDS)),
        np.cumsum([len(TRAINED), len(COLOURS), len(SHAPES), len(BACKGROUNDS)]).tolist(),
        strict=True,
    )
)
"""Places of the texts of pairs, colours, shapes and grounds, among which a picture is compared."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Phrases:
    """The texts of one step."""

    texts: tuple[str, ...]
    """Pairs, colours, shapes, grounds, a text that says nothing is there, and noise."""

    def truths(self, scenes: Sequence[Scene]) -> npt.NDArray[np.float32]:
        """Return 1 where a text is true of a picture, (picture, text), and `IGNORED` where nobody
        can tell."""
        return np.array([self._truths(scene) for scene in scenes], np.float32)

    def _truths(self, scene: Scene) -> list[float]:
        whole = [thing for thing in scene.things if not thing.is_cut]
        cut = [thing for thing in scene.things if thing.is_cut]

        def seen(fits: Sequence[bool], hinted: Sequence[bool]) -> float:
            return 1.0 if any(fits) else IGNORED if any(hinted) else 0.0

        def of(name: str, kind: str) -> float:
            return seen(
                [getattr(thing, kind) == name for thing in whole],
                [getattr(thing, kind) == name for thing in cut],
            )

        found = [
            seen([t.pair == pair for t in whole], [_may_be(t, pair) for t in cut])
            for pair in TRAINED
        ]
        found += [of(colour, "colour") for colour in COLOURS]
        found += [of(shape, "shape") for shape in SHAPES]
        found += [float(scene.ground == kind) for kind in BACKGROUNDS]
        found.append(IGNORED if cut and not whole else float(not scene.things))
        return found + [0.0] * (len(self.texts) - len(found))


def _may_be(thing: Placed, pair: tuple[str, str]) -> bool:
    return thing.pair == pair


def _noise(rng: random.Random) -> str:
    words = [
        "".join(rng.choices(LETTERS, k=rng.randint(2, 9))) for _ in range(rng.choice((1, 1, 2)))
    ]
    return rng.choice(TEMPLATES).format(" ".join(words))


def sample_phrases(rng: random.Random) -> Phrases:
    """Draw a text for each trained pair, colour, shape and ground, for nothing, and noise."""

    def say(forms: Sequence[str], name: str) -> str:
        return rng.choice(forms).replace("{}", name)

    texts = [say(TEMPLATES, f"{colour} {shape}") for colour, shape in TRAINED]
    texts += [say(OF_COLOUR, colour) for colour in COLOURS]
    texts += [say(TEMPLATES, shape) for shape in SHAPES]
    texts += [say(OF_GROUND, kind) for kind in BACKGROUNDS]
    texts.append(rng.choice(OF_NOTHING))
    texts += [_noise(rng) for _ in range(NOISE)]
    return Phrases(texts=tuple(texts))
