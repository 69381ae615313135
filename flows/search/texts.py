"""Gets the vectors of query texts, and selects reference texts that show how text vectors are
distributed. Loads no model itself.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product

from artifacts.tiles import OFF
from artifacts.vectors import Vectors
from flows.console.display import Display
from flows.job.prepare import Job, prepare_without_media
from flows.job.replanning import replanned_once
from flows.machine.launch import DirectLauncher
from flows.options.vectors import VectorConfig
from flows.pipelines import LABEL
from flows.running.run_observer import RunObserver
from flows.running.stopping import stopped_in_order

CheckJob = Callable[[Job], None]
"""Raises UsageError for a job whose model is not the wanted one."""
TextHalf = Callable[[VectorConfig, Sequence[str], Display, CheckJob], Vectors]
"""Gives each text its vector, shape (texts, width), by the text half of the configuration's
model, which is checked before it is loaded."""
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


def read_texts(
    config: VectorConfig, texts: Sequence[str], display: Display, check: CheckJob
) -> Vectors:
    """Return the vector of each text, by the text half alone; the store may have them. Raises
    PenstockError."""

    def attempt() -> Vectors:
        observer = RunObserver(display)
        with tempfile.TemporaryDirectory(prefix="penstock-search-") as out, stopped_in_order():
            launcher = DirectLauncher(observer.on_event)
            job = prepare_without_media(replace(config, out=out, tiles=OFF), launcher, LABEL)
            check(job)
            with observer.pipeline_for_job(job, launcher, "searching in", outputs={}) as (
                runner,
                _,
                _,
            ):
                return runner.texts.make([[text] for text in texts]).vectors

    return replanned_once(attempt, display.say)


TEXT_HALF: TextHalf = read_texts
"""The one that commands use."""
