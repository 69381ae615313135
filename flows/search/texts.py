"""Gets the vectors of query texts, and defines reference texts that show how text vectors are
distributed. Loads no model itself."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

from artifacts.index.manifest import Maker
from artifacts.index.writing import refuse_other_halves
from artifacts.tiles import OFF
from artifacts.vectors import Vectors
from flows.console.display import Display
from flows.job.prepare import prepare_without_media
from flows.job.replanning import replanned_once
from flows.machine.launch import DirectLauncher
from flows.options.vectors import VectorConfig
from flows.pipelines import LABEL
from flows.running.run_observer import RunObserver
from flows.running.stopping import stopped_in_order
from flows.search.maker import maker_of

SUBJECTS = (
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
TEMPLATES = ("a photo of a {}", "{}", "a video of a {} at night", "there is a {} far away")
REFERENCE_TEXTS = tuple(form.format(thing) for thing, form in product(SUBJECTS, TEMPLATES))
"""Stand-ins for the texts that users will search for. They measure how well text queries find
rows."""


def read_texts(
    config: VectorConfig, texts: Sequence[str], display: Display, folder: Path, maker: Maker
) -> Vectors:
    """Return the vector of each text, computed by the text half alone or read from the store.
    Raises PenstockError, also if the text half is not that of `maker`, which made the index in
    `folder`."""

    def attempt() -> Vectors:
        observer = RunObserver(display)
        with tempfile.TemporaryDirectory(prefix="penstock-search-") as out, stopped_in_order():
            launcher = DirectLauncher(observer.on_event)
            job = prepare_without_media(replace(config, out=out, tiles=OFF), launcher, LABEL)
            refuse_other_halves(folder, maker, maker_of(job, maker.width))
            with observer.pipeline_for_job(job, launcher, "searching in", outputs={}) as runner:
                return runner.texts.make([[text] for text in texts]).vectors

    return replanned_once(attempt, display.print_line)
