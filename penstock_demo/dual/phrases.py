"""Draws the texts of one training step, and determines which of them are true of a picture. It
never draws texts of untrained pairs."""

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from penstock_demo.dual.scenes import TRAINED, Scene
from penstock_demo.words import BACKGROUNDS, COLOURS, NEVER_TRAINED, SHAPES

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
"""Texts that name a thing; the first is the program's own."""
OF_COLOUR: Final = ("something {}", "a {} thing", "a photo of {}", "{}", "a photo of something {}")
OF_GROUND: Final = ("a {} background", "a photo of a {} background", "{} background")
OF_NOTHING: Final = ("nothing", "a photo of nothing", "background", "a photo of background")
NOISE: Final = 4
"""Meaningless texts in each step: true of no image."""
LETTERS: Final = "abcdefghijklmnopqrstuvwxyz"
IGNORED: Final = -1.0
"""Truth value of a text that does not count."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Phrases:
    """The texts of one step."""

    texts: tuple[str, ...]
    """Pairs, colours, shapes, grounds, a text that means that nothing is there, and noise."""

    def truths(self, scenes: Sequence[Scene]) -> npt.NDArray[np.float32]:
        """Return (image, text): 1 where a text is true of an image, 0 where not, `IGNORED` where
        it does not count."""
        return np.array([self._truths(scene) for scene in scenes], np.float32)

    def _truths(self, scene: Scene) -> list[float]:
        whole = [thing for thing in scene.things if not thing.is_cut]
        cut = [thing for thing in scene.things if thing.is_cut]
        # A red star never occurs, so "star" is ignored for an image with something red. Otherwise
        # red would come to mean "no star". A blue star beside it is ignored too, or red would come
        # to mean "star".
        shapes = {s for t in scene.things for c, s in NEVER_TRAINED if c == t.colour}
        colours = {c for t in scene.things for c, s in NEVER_TRAINED if s == t.shape}

        def truth(name: object, kind: str, closed: Collection[object] = ()) -> float:
            if name in closed:
                return IGNORED
            if any(getattr(thing, kind) == name for thing in whole):
                return 1.0
            return IGNORED if any(getattr(thing, kind) == name for thing in cut) else 0.0

        truths = [truth(pair, "pair") for pair in TRAINED]
        truths += [truth(colour, "colour", colours) for colour in COLOURS]
        truths += [truth(shape, "shape", shapes) for shape in SHAPES]
        truths += [float(scene.ground == kind) for kind in BACKGROUNDS]
        truths.append(IGNORED if cut and not whole else float(not scene.things))
        return truths + [0.0] * (len(self.texts) - len(truths))


def _noise(rng: random.Random) -> str:
    words = [
        "".join(rng.choices(LETTERS, k=rng.randint(2, 9))) for _ in range(rng.choice((1, 1, 2)))
    ]
    return rng.choice(TEMPLATES).format(" ".join(words))


def sample_phrases(rng: random.Random) -> Phrases:
    """Draw a text for each trained pair, colour, shape and ground, for nothing, and noise."""

    def fill(forms: Sequence[str], name: str) -> str:
        return rng.choice(forms).replace("{}", name)

    texts = [fill(TEMPLATES, f"{colour} {shape}") for colour, shape in TRAINED]
    texts += [fill(OF_COLOUR, colour) for colour in COLOURS]
    texts += [fill(TEMPLATES, shape) for shape in SHAPES]
    texts += [fill(OF_GROUND, kind) for kind in BACKGROUNDS]
    texts.append(rng.choice(OF_NOTHING))
    texts += [_noise(rng) for _ in range(NOISE)]
    return Phrases(texts=tuple(texts))
