"""Says how texts become vectors, and which ones show how texts lie; loads no model itself."""

from collections.abc import Callable, Sequence
from itertools import product

from artifacts.vectors import Vectors
from flows.console.display import Display
from flows.job.config import CaptionConfig

TextHalf = Callable[[CaptionConfig, Sequence[str], Display], Vectors]
"""Gives each text its vector, shape (texts, width), by the text half of the configuration's
model."""
TEXT_HALF: TextHalf | None = None
"""The one that commands use; None: this program reads no texts yet."""
THINGS = (
    "dog",
    "cat on a sofa",
    "red car",
    "bridge over a river",
    "crowd in a street",
    "plate of food",
    "mountain in the snow",
    "child with a ball",
    "page of a book",
    "aeroplane in the sky",
    "beach at sunset",
    "man who speaks",
    "kitchen",
    "flower",
    "map",
    "drawing of a house",
)
FORMS = ("a photo of a {}", "{}", "a video of a {} at night", "there is a {} far away")
PROBES = tuple(form.format(thing) for thing, form in product(THINGS, FORMS))
"""Texts that stand for those that people will search for: by them it is measured how texts find."""
