"""Finds by testing how a checkpoint's processor takes media and prompts.

Processors differ in four points: media as one list or as one list per prompt, the argument's name,
placeholders in the text, and how many media one prompt takes. What a processor declares about this
is not reliable. So the module runs the processor on a few small frames of noise. It uses the first
layout in which two rows with different prompts come out complete.

1. `_candidates` lists the layouts, most common first: every argument with every form of the turn,
   many prompts or one at a time, nested lists or one list.
2. A processor error means that the next layout is tried. Out of memory and a missing package are
   raised.
3. `_check` requires images among the outputs and one row per prompt. If the processor declares
   image tokens, the text must have room for them.
4. Then a second image per prompt is tried, and whether a video's outputs depend on its rate.
5. `known` caches each result for the processor's lifetime, while its chat template stays the same.
6. A form that does not contain the question verbatim is skipped; see `calling.py`.
7. If no layout works, the error of the first is reported.

The module also tests a checkpoint's tokenizer, template and processor files before its profile is
built.
"""

import contextlib
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jinja2 import TemplateSyntaxError

from artifacts.errors import EnvironmentFault, PenstockError, UsageError
from artifacts.packages import library_needs
from stages.models.halves.model_class import one_line
from stages.models.processors.blank_clips import Clip, clip_of
from stages.models.processors.known import known
from stages.models.processors.loading import is_image_output, takes_images, takes_videos
from stages.models.processors.placeholders import declared_ids
from stages.models.processors.processor_calls import (
    PARTS,
    PLAIN,
    RATE,
    RETURN_METADATA,
    SAMPLE,
    STRING,
    TIMES,
    WITH_PLACEHOLDERS,
    Layout,
    exact,
    forms,
    last_forms,
    places,
    run,
    same,
    text_ids,
    write,
)
from stages.models.protocols import Processor, Tree
from stages.process.exit_diagnosis import out_of_memory

PROBES = ("Describe.", "What happens in this video?")
"""Prompts of different lengths, which also test padding."""
PROBE_SHAPE = (4, 96, 128, 3)
"""Frames, height, width and channels of the noise for tests."""
SLOW_SECONDS = 28.0
SLOW_TIMES = (0.0, 7.0, 14.0, 21.0)
"""Length and times in seconds of the noise whose rate no processor assumes."""
BOTH = (True, False)


def layout_of(processor: Processor, channel: str) -> Layout:
    """Return how this processor takes `images` or `videos`. Raises UsageError if no layout works,
    MissingPackage if it needs a package that is not installed."""
    return known(processor, f"layout of {channel}", lambda: _find(processor, channel))


def channels_of(processor: Processor) -> list[str]:
    """Return the kinds of media that a processor takes: `images`, `videos` or both."""
    taken = {"images": takes_images(processor), "videos": takes_videos(processor)}
    return [channel for channel in taken if taken[channel]]


def noise(channel: str) -> Clip:
    frames = np.random.default_rng(0).integers(0, 255, PROBE_SHAPE, dtype=np.uint8)
    if channel == "images":
        return Clip(frames=frames[:1], times=(0.0,), seconds=0.0, kind="image")
    return clip_of("video", frames)


def _find(processor: Processor, channel: str) -> Layout:
    if processor.chat_template:
        _try_template(processor, channel)
    problem: Exception | None = None
    inexact = False
    for layout in _candidates(processor, channel):
        try:
            outputs = run(processor, layout, [noise(channel)] * 2, PROBES)
            _check(processor, layout, outputs)
        except ImportError as error:
            raise library_needs(type(processor).__name__, error) from error
        except PenstockError:
            raise
        except Exception as error:  # a processor may fail in any way; the next layout may work
            if out_of_memory(error):
                raise
            problem = problem or error
            continue
        if not exact(processor, layout.form, channel):
            inexact = True
            continue
        layout = _with_rate(processor, _with_placeholders(processor, layout, outputs))
        return replace(layout, alone=channel == "images" and _takes_one_image(processor, layout))
    if inexact:
        raise UsageError(
            "the chat template of this model prints a question as a list, or changes its text",
            hint="Correct its chat_template.jinja, or use another model",
        )
    text = " ".join(str(problem).split())[:200] or type(problem).__name__
    raise UsageError(
        f"{type(processor).__name__} takes {channel} in no known layout: {text}",
        hint="Use another model",
    ) from problem


def _try_template(processor: Processor, channel: str) -> None:
    """Raise the chat template's own error if it accepts neither form."""
    try:
        write(processor, PARTS, channel, 1, PROBES[0])
    except Exception as error:
        try:
            write(processor, STRING, channel, 1, PROBES[0])
        except Exception:
            raise error from None


def _candidates(processor: Processor, channel: str) -> Iterator[Layout]:
    """Yield the layouts to try, the most common first."""
    taking: list[tuple[str, tuple[str, ...]]] = [(channel, ())]
    if channel == "videos":
        taking = [
            (channel, (SAMPLE, TIMES)),
            (channel, (SAMPLE, TIMES, RETURN_METADATA)),
            (channel, (SAMPLE,)),
        ]
        taking += [] if takes_images(processor) else [("images", ())]
    calls = itertools.product((forms(processor), last_forms(processor)), taking)
    for tried, (argument, options) in calls:
        for batched, nested, form in itertools.product(BOTH, BOTH, tried):
            yield Layout(
                channel=channel,
                argument=argument,
                options=options,
                batched=batched,
                nested=nested,
                form=form,
            )


def _check(processor: Processor, layout: Layout, outputs: Mapping[str, Tree]) -> None:
    """Raise ValueError unless the outputs are two complete rows with images and prompts."""
    if not any(is_image_output(name) for name in outputs):
        raise ValueError("the outputs contain no images")
    ids = text_ids(outputs)
    if len(ids) != len(PROBES) or torch.equal(ids[0], ids[1]):
        raise ValueError("the outputs do not contain the prompts")
    known = declared_ids(processor)
    text = write(processor, layout.form, layout.channel, 1, PROBES[1])
    text_ids_alone, row = processor.tokenizer(text)["input_ids"], ids[1].tolist()
    if known and not known & set(row) and len(row) <= len(text_ids_alone):
        raise ValueError("the output text has no place for an image")


def _with_placeholders(processor: Processor, layout: Layout, outputs: Mapping[str, Tree]) -> Layout:
    """Return the layout with written-out image placeholders if its output is the same. Processors
    that insert placeholders themselves may log a warning each time."""
    spelled = replace(layout, form=WITH_PLACEHOLDERS)
    if layout.form == PLAIN[0] and declared_ids(processor):
        with contextlib.suppress(Exception):  # the processor may fail in any way
            spelled_outputs = run(processor, spelled, [noise(layout.channel)] * 2, PROBES)
            if torch.equal(text_ids(spelled_outputs), text_ids(outputs)):
                return spelled
    return layout


def _with_rate(processor: Processor, layout: Layout) -> Layout:
    """Return the layout with the rate of the frames if any output depends on it. Without sampling,
    it has no other use."""
    if SAMPLE not in layout.options:
        return layout
    rated = replace(layout, options=(*layout.options, RATE))
    clip = replace(noise(layout.channel), times=SLOW_TIMES, seconds=SLOW_SECONDS)
    try:
        stated, assumed = (run(processor, form, [clip], PROBES[:1]) for form in (rated, layout))
    except Exception as error:  # the processor may fail in any way on an option
        if out_of_memory(error):
            raise
        return layout
    return layout if same(stated, assumed) else rated


def _takes_one_image(processor: Processor, layout: Layout) -> bool:
    """Return whether a prompt has no place for a second image."""
    one_image = noise("images")
    two = replace(one_image, frames=np.concatenate([one_image.frames] * 2), times=(0.0, 0.0))
    try:
        outputs = [run(processor, layout, [clip], PROBES[:1]) for clip in (one_image, two)]
        counts = [places(processor, tensors, media) for media, tensors in enumerate(outputs, 1)]
    except Exception as error:  # the processor may fail in any way
        if out_of_memory(error):
            raise
        return True
    if counts[0]:
        return counts[1] <= counts[0]
    shown = next(value for name, value in outputs[1].items() if is_image_output(name))
    return len(shown) != len(text_ids(outputs[1]))


TEMPLATES = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")
"""Files that may hold a chat template; the first one present is used."""


def try_processor(processor: Processor, folder: Path) -> None:
    """Raise PenstockError if prompts cannot be written or images cannot be processed. Probing alone
    would ignore the error."""
    if (template := folder / TEMPLATES[0]).exists() and not template.stat().st_size:
        raise EnvironmentFault(
            f"{template} cannot be used: it is empty",
            hint="Download the checkpoint again, or delete that file if the model never had a chat "
            "template",
        )
    for channel in channels_of(processor):
        try:
            layout_of(processor, channel)
        except PenstockError:
            raise
        except TemplateSyntaxError as error:
            raise EnvironmentFault(
                f"{_template(folder)}: the chat template cannot be parsed (line {error.lineno}: "
                f"{one_line(error)})",
                hint="Download the checkpoint again, or correct that line",
            ) from error
        except Exception as error:  # a template's expressions may fail in any way
            if out_of_memory(error):
                raise
            raise UsageError(
                f"{_template(folder)}: the chat template cannot be rendered for {channel} "
                f"({one_line(error)})",
                hint="Download the checkpoint again, or correct that file",
            ) from error


def _template(folder: Path) -> Path:
    folders = (folder / name for name in TEMPLATES if (folder / name).exists())
    return next(folders, folder)
