"""Says how texts become vectors, and which ones show how texts lie; it loads no model in this
process."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

from artifacts.tiles import OFF
from artifacts.vectors import Vectors
from flows.console.display import Display
from flows.job.config import CaptionConfig
from flows.job.launch import DirectLauncher
from flows.pipelines import LABEL
from flows.running.run import Watch, prepared

TextHalf = Callable[[CaptionConfig, Sequence[str], Display], Vectors]
"""Gives each text its vector, shape (texts, width), by the text half of the configuration's
model."""
BLANK = b"P6 1 1 255\n\0\0\0"
"""A picture of one pixel."""
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


def read_texts(config: CaptionConfig, texts: Sequence[str], display: Display) -> Vectors:
    """Return the vectors of texts by the text half alone; the store may have them. Raises
    PenstockError."""
    watch = Watch(display)
    with tempfile.TemporaryDirectory(prefix="penstock-search-") as out:
        # A job is of media; that of this one is never looked at.
        blank = Path(out, "blank.ppm")
        blank.write_bytes(BLANK)
        asked = replace(config, sources=(str(blank),), out=out, tiles=OFF)
        with (
            prepared(asked, watch, DirectLauncher, LABEL) as (job, launcher),
            watch.working(job, launcher, outputs={}) as (sequence, _, _),
        ):
            return sequence.texts.make([[text] for text in texts]).vectors


TEXT_HALF: TextHalf = read_texts
"""The one that commands use."""
