"""Makes the images and texts that trace and test a half: noise of several sizes, prepared by the
model's own processor."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from artifacts.schema import Half, MediaKind
from stages.embed_texts.run import TextReader
from stages.models.halves.features import encode
from stages.models.halves.routes import PIXELS
from stages.models.halves.vectors import text_vectors
from stages.models.processors.clip import Clip, clip_of
from stages.models.processors.images import prepare_images
from stages.models.processors.prepare import joined, prepare, takes_videos
from stages.models.processors.side_inputs import Prepared

PROMPTS = ("describe ", "describe what is seen here in one sentence ", "what is that? ")
"""Prompts for each size, for halves that read text; they have different lengths."""
SIZES = ((168, 112), (280, 196), (140, 308))
"""Height and width of test images; the last gives windows of different sizes."""
FRAMES = (4, 6, 2)
"""Frames of test videos for each size, if the model takes any number."""
BATCHES = (2, 1, 4)
"""Items per batch for each size; a graph is traced with the first."""
TEXTS = (
    "a photo of a cat",
    "two red squares move to the left, and a blue circle stays where it is",
    "night",
    "an old harbour, seen from a hill in the rain",
)


PARITY_TEXTS = 256
"""Number of texts on which a text half is tested."""
LETTERS = re.compile(r"[^A-Za-z]|</w>")
"""Non-letters of a token, such as marks of word boundaries."""
SHORTEST = 3
"""Fewest letters of a word."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One test input and the call that runs a half on it."""

    name: str
    """Description of the input for the user."""
    run: Callable[[Any], Any]
    """Runs a half and returns its output."""


def trials(
    half: Any, part: Half, processor: Any, *, dual: bool, frames_a_video: int
) -> Iterator[Trial]:
    """Yield the test inputs of a half. The first of each kind has several items, and its graph is
    traced."""
    if part == "language":
        reader = TextReader(processor, half)
        # One text is read without padding, to find out whether the output depends on it.
        for count, filled in ((len(TEXTS), False), (1, False), (2, bool(reader.max_tokens))):
            inputs = reader.inputs(TEXTS[:count], padded=filled)
            run = partial(text_vectors, inputs=inputs)
            yield Trial(name=f"{count} texts{' filled up' * filled}", run=run)
        return
    takes_both = not dual and takes_videos(processor)
    kinds: Sequence[MediaKind] = ("image", "video") if takes_both else ("image",)
    for kind in kinds:
        for size, rows, any_number, prompt in zip(SIZES, BATCHES, FRAMES, PROMPTS, strict=True):
            frames = 1 if kind == "image" else frames_a_video or any_number
            clips = [_noise(kind, frames, *size, seed) for seed in range(rows)]
            prepared = [_prepared(processor, clip, dual, prompt) for clip in clips]
            name = f"{rows} x {kind} of {size[1]} x {size[0]}"
            yield Trial(name=name, run=_run_images(prepared))
        mixed = [_noise(kind, frames, *size, 0) for size in SIZES]
        prepared = [_prepared(processor, clip, dual, PROMPTS[0]) for clip in mixed]
        # Images of different sizes need an input with the patches of all images concatenated.
        if any(n in PIXELS and getattr(v, "ndim", 0) == 2 for n, v in prepared[0].inputs.items()):
            yield Trial(name=f"{kind}s of different sizes", run=_run_images(prepared))


def texts_of(processor: Any) -> list[str]:
    """Return texts of words from the model's vocabulary, as users write them in searches."""
    known = sorted(processor.tokenizer.get_vocab())
    known_words = [found for token in known if (found := LETTERS.sub("", token)).isalpha()]
    known_words = [word for word in known_words if len(word) >= SHORTEST] or list(TEXTS)
    drawn = np.random.default_rng(0).integers(len(known_words), size=(PARITY_TEXTS, 2))
    return [f"a photo of {known_words[first]} and {known_words[second]}" for first, second in drawn]


def _noise(kind: MediaKind, count: int, height: int, width: int, seed: int) -> Clip:
    drawn = np.random.default_rng(seed).integers(0, 255, (count, height, width, 3), dtype=np.uint8)
    return clip_of(kind, drawn)


def _prepared(processor: Any, clip: Clip, dual: bool, prompt: str) -> Prepared:
    return prepare_images(processor, clip) if dual else prepare(processor, clip, prompt)


def _run_images(rows: Sequence[Prepared]) -> Callable[[Any], Any]:
    inputs = {name: joined([row.inputs[name] for row in rows]) for name in rows[0].inputs}
    return lambda half: encode(half, inputs)
