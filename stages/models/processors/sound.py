"""Turns sound into encoder inputs and later into its place in a prompt, by the checkpoint's own
processor.

Each row's sound is passed alone to the processor, because the length of some families' features
depends on what is padded beside it. What the processor's method for sound returns, besides the
sound itself, is kept; while a prompt is written, that method returns it again. A mask is kept as
two lengths.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from artifacts.errors import UsageError
from stages.models.halves.records import FeatureRecord
from stages.models.halves.split_route import AUDIO
from stages.models.processors.input_layout import PROBES, noise
from stages.models.processors.known import known
from stages.models.processors.placeholders import declared_ids
from stages.models.processors.processor_calls import (
    INTERLEAVED,
    SEPARATE,
    Layout,
    joined,
    run,
    text_ids,
)
from stages.models.protocols import Processor, Tree
from stages.process.exit_diagnosis import out_of_memory

HOOK = "_process_audio"
"""The processor's method for sound."""
ONES, WIDTH, DTYPE = "ones", "width", "dtype"
"""Keys of a kept mask: how many of its numbers are 1, and how many it has; its type."""
PROBE_SECONDS = (2.0, 6.0)
"""Lengths of noise in seconds that show the tokens per second."""


def sound_rate(processor: Processor) -> int:
    """Return the samples per second that a processor takes; 0 if it takes no sound."""
    extractor = getattr(processor, "_audio_processor", None)
    return 0 if extractor is None else int(getattr(extractor, "sampling_rate", 0))


def sound_layout(processor: Processor, layout: Layout) -> Layout:
    """Return the layout with the place of sound that works: interleaved with videos where the
    processor does that, else behind the media. Raises UsageError if there is none."""
    place = known(
        processor, f"place of sound in {layout.channel}", lambda: _find(processor, layout)
    )
    return replace(layout, sound=place)


def _find(processor: Processor, layout: Layout) -> str:
    layout = replace(layout, system="")
    clip = replace(noise(layout.channel), sound=sound_noise(processor, PROBE_SECONDS[0]))
    for place in (INTERLEAVED, SEPARATE) if layout.channel == "videos" else (SEPARATE,):
        try:
            outputs = run(processor, replace(layout, sound=place), [clip], PROBES[:1])
        except Exception as error:  # a processor may fail in any way; the next place may work
            if out_of_memory(error):
                raise
            continue
        if sound_places(processor, outputs):
            return place
    raise UsageError(
        f"{type(processor).__name__} has no place for sound beside {layout.channel}",
        hint="Leave the sound out, or use another model",
    )


@contextlib.contextmanager
def answering_sound(processor: Processor, rows: Sequence[FeatureRecord]) -> Iterator[None]:
    """Make the processor's method for sound return what was kept of these rows, in the block."""
    if not rows:
        yield
        return
    side = {name: _joined([row.side[name] for row in rows]) for name in rows[0].side}
    replacements = [text for row in rows for text in row.replacements]
    with answering(processor, HOOK, lambda *_, **__: (dict(side), [*replacements])):
        yield


def sound_noise(processor: Processor, seconds: float) -> NDArray[np.float32]:
    count = int(seconds * sound_rate(processor))
    return np.random.default_rng(0).normal(0, 0.1, count).astype(np.float32)


def sound_places(processor: Processor, outputs: Mapping[str, Tree]) -> int:
    """Return how many features of sound belong in the rows of a processor's outputs."""
    ids = text_ids(outputs)
    return int(torch.isin(ids, torch.tensor(sorted(declared_ids(processor, (AUDIO,))))).sum())


def mask_of(kept: dict[str, Any], width: int) -> torch.Tensor:
    mask = torch.zeros((1, width), dtype=getattr(torch, kept[DTYPE]))
    mask[:, : kept[ONES]] = 1
    return mask


def _joined(values: list[Any]) -> Any:
    """Join one value of several rows; masks get the width of the widest."""
    if isinstance(values[0], dict):
        width = max(value[WIDTH] for value in values)
        values = [mask_of(value, width) for value in values]
    return joined(values)


@contextlib.contextmanager
def answering(processor: Processor, hook: str, answer: Callable[..., Any]) -> Iterator[None]:
    """Replace a method of this processor object, not of its class, inside the block."""
    processor.__dict__[hook] = answer
    try:
        yield
    finally:
        del processor.__dict__[hook]


@contextlib.contextmanager
def remembered(
    processor: Processor, hook: str, **options: Any
) -> Iterator[list[tuple[dict[str, Any], list[str]]]]:
    """Yield a list that gets what a method of the processor returns inside the block: outputs, and
    the text in place of each placeholder. The method is called with these options, too."""
    calls: list[tuple[dict[str, Any], list[str]]] = []
    compute = getattr(processor, hook)

    def remember(*args: Any, **kwargs: Any) -> Any:
        returned, replacements = compute(*args, **kwargs, **options)
        calls.append((dict(returned), [*replacements]))
        return returned, replacements

    with answering(processor, hook, remember):
        yield calls
