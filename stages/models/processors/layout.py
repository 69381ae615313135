"""Finds out by trying how a checkpoint's processor takes media and prompts; knows no family.

Processors differ in whether media go in as one list or as a list for each prompt, under which
argument, with or without words for them in the text, and how many go into one prompt. What a
processor says of that is not reliable, so it is run on a few small frames of noise: the first way
in which two rows with different prompts come out whole is the one to take.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import torch

from artifacts.errors import PenstockError, UsageError
from stages.models.processors.clip import Clip, pictures, video_metadata
from stages.models.processors.loading import (
    count_places,
    declared_ids,
    is_picture,
    needs_package,
    takes_images,
)
from stages.models.processors.turn import PARTS, PLAIN, SPELLED, WORDS, forms, write
from stages.process.ending import out_of_memory

PROBES = ("Describe.", "What happens in this video?")
"""Prompts of different lengths, so that padding is tried too."""
PROBE_SHAPE = (4, 96, 128, 3)
"""Frames, height, width of the noise that processors are tried on."""
TEXT_IDS = ("input_ids", "decoder_input_ids", "labels")
"""Under which names processors give the tokens of the text."""
SAMPLE, TIMES, TOLD = "do_sample_frames", "video_metadata", "return_metadata"
"""Options for videos: whether to take only some of the frames, the times of the frames, and whether
those are given back, which some processors rely on while they write the prompt."""
BOTH = (True, False)
Answer = TypeVar("Answer")
_KNOWN: "WeakKeyDictionary[Any, dict[Any, Any]]" = WeakKeyDictionary()


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """How a processor takes media of one kind."""

    channel: str
    """`images` or `videos`."""
    argument: str
    """The processor's argument that takes them: some take videos as `images`."""
    nested: bool
    """Whether it takes a list for each prompt, and not one list for all."""
    options: tuple[str, ...] = ()
    """Which of its options for videos it takes."""
    batched: bool = True
    """Whether it takes several prompts at once."""
    form: str
    """How a turn is written; see `turn`."""
    alone: bool = False
    """Whether one prompt takes one picture at most."""


def known(processor: Any, question: str, find: Callable[[], Answer]) -> Answer:
    """What `find` answers for this processor and its chat template, asked once."""
    answers = _KNOWN.setdefault(processor, {})
    key = (question, processor.chat_template, processor.tokenizer.chat_template)
    if repr(key) not in answers:
        answers[repr(key)] = find()
    answer: Answer = answers[repr(key)]
    return answer


def layout_of(processor: Any, channel: str) -> Layout:
    """How this processor takes `images` or `videos`. Raises UsageError when in no way known, or
    EnvironmentFault when it needs a package."""
    return known(processor, f"layout of {channel}", lambda: _find(processor, channel))


def run(
    processor: Any, layout: Layout, clips: Sequence[Clip], prompts: Sequence[str]
) -> dict[str, Any]:
    """All outputs of the processor for these media and prompts."""
    if len(clips) > 1 and not layout.batched:
        pairs = zip(clips, prompts, strict=True)
        return _padded(processor, [run(processor, layout, [c], [p]) for c, p in pairs])
    rows = [_media(layout, clip) for clip in clips]
    options: dict[str, Any] = {}
    if SAMPLE in layout.options:
        options[SAMPLE] = False
    if TOLD in layout.options:
        options[TOLD] = True
    if TIMES in layout.options:
        times: list[Any] = [[video_metadata(clip)] for clip in clips]
        options[TIMES] = times if layout.nested else list(itertools.chain.from_iterable(times))
    texts = [
        write(processor, layout.form, layout.channel, len(row), prompt)
        for row, prompt in zip(rows, prompts, strict=True)
    ]
    bos = processor.tokenizer.bos_token
    if layout.form in (PARTS, WORDS) and bos is not None and texts[0].startswith(bos):
        options["add_special_tokens"] = False  # the template wrote it; as apply_chat_template does
    media = rows if layout.nested else list(itertools.chain.from_iterable(rows))
    given = {"text": texts, layout.argument: media}
    outputs = dict(processor(**given, return_tensors="pt", padding=True, **options))
    outputs.pop(TIMES, None)
    return outputs


def _padded(processor: Any, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The outputs of several calls as one batch: what has a number for each token of the text is
    filled up on the left, with nothing or with the token for that."""
    length = max(text_ids(row).shape[1] for row in rows)
    joined: dict[str, Any] = {}
    for name in rows[0]:
        parts = []
        if rows[0][name] is None:
            continue
        for row in rows:
            ids, value = text_ids(row), torch.as_tensor(row[name])
            if value.shape[:2] == ids.shape and not is_picture(name):
                fill = processor.tokenizer.pad_token_id if name in TEXT_IDS else 0
                missing = (1, length - ids.shape[1], *value.shape[2:])
                value = torch.cat([value.new_full(missing, fill), value], dim=1)
            parts.append(value)
        joined[name] = torch.cat(parts)
    return joined


def places(processor: Any, outputs: dict[str, Any], media: int) -> int:
    """How many features go into the first row of a processor's outputs."""
    return count_places(processor, text_ids(outputs)[0].tolist(), media)


def text_ids(outputs: dict[str, Any]) -> torch.Tensor:
    """The tokens of the text, a row a prompt."""
    name = next((name for name in TEXT_IDS if name in outputs), None)
    if name is None:
        raise ValueError(f"the processor gave no tokens but only {', '.join(outputs)}")
    return torch.as_tensor(outputs[name])


def noise(channel: str) -> Clip:
    frames = np.random.default_rng(0).integers(0, 255, PROBE_SHAPE, dtype=np.uint8)
    if channel == "images":
        return Clip(frames=frames[:1], times=(0.0,), seconds=0.0, kind="image")
    times = tuple(float(second) for second in range(len(frames)))
    return Clip(frames=frames, times=times, seconds=float(len(frames)), kind="video")


def _media(layout: Layout, clip: Clip) -> list[Any]:
    return [clip.frames] if layout.channel == "videos" else pictures(clip.frames)


def _find(processor: Any, channel: str) -> Layout:
    if processor.chat_template:
        _try_template(processor, channel)
    problem: Exception | None = None
    for layout in _candidates(processor, channel):
        try:
            outputs = run(processor, layout, [noise(channel)] * 2, PROBES)
            _check(processor, layout, outputs)
        except ImportError as error:
            raise needs_package(type(processor).__name__, error) from error
        except PenstockError:
            raise
        except Exception as error:  # a processor may refuse in any way; the next form may do
            if out_of_memory(error):
                raise
            problem = problem or error
            continue
        layout = _spelled(processor, layout, outputs)
        return replace(layout, alone=channel == "images" and _takes_one(processor, layout))
    text = " ".join(str(problem).split())[:200] or type(problem).__name__
    raise UsageError(
        f"{type(processor).__name__} takes {channel} in no way that is known: {text}",
        hint="Use another model",
    ) from problem


def _try_template(processor: Any, channel: str) -> None:
    """Raises what the chat template raises, where it takes neither parts nor words."""
    try:
        write(processor, PARTS, channel, 1, PROBES[0])
    except Exception as error:
        try:
            write(processor, WORDS, channel, 1, PROBES[0])
        except Exception:
            raise error from None


def _candidates(processor: Any, channel: str) -> Iterator[Layout]:
    """What to try, the commonest way first."""
    taking: list[tuple[str, tuple[str, ...]]] = [(channel, ())]
    if channel == "videos":
        taking = [
            (channel, (SAMPLE, TIMES)),
            (channel, (SAMPLE, TIMES, TOLD)),
            (channel, (SAMPLE,)),
        ]
        taking += [] if takes_images(processor) else [("images", ())]
    for argument, options in taking:
        for batched, nested, form in itertools.product(BOTH, BOTH, forms(processor)):
            yield Layout(
                channel=channel,
                argument=argument,
                options=options,
                batched=batched,
                nested=nested,
                form=form,
            )


def _check(processor: Any, layout: Layout, outputs: dict[str, Any]) -> None:
    """Raises ValueError when what came out is not two whole rows with pictures and prompts."""
    if not any(is_picture(name) for name in outputs):
        raise ValueError("no pictures came out")
    ids = text_ids(outputs)
    if len(ids) != len(PROBES) or torch.equal(ids[0], ids[1]):
        raise ValueError("the prompts did not come out")
    known = declared_ids(processor)
    text = write(processor, layout.form, layout.channel, 1, PROBES[1])
    words, row = processor.tokenizer(text)["input_ids"], ids[1].tolist()
    if known and not known & set(row) and len(row) <= len(words):
        raise ValueError("the text that came out has no place for a picture")


def _spelled(processor: Any, layout: Layout, outputs: dict[str, Any]) -> Layout:
    """The layout that writes the words for pictures where it comes to the same: processors that put
    them there themselves may warn of it each time."""
    spelled = replace(layout, form=SPELLED)
    if layout.form == PLAIN[0] and declared_ids(processor):
        with contextlib.suppress(Exception):  # it may refuse in any way
            found = run(processor, spelled, [noise(layout.channel)] * 2, PROBES)
            if torch.equal(text_ids(found), text_ids(outputs)):
                return spelled
    return layout


def _takes_one(processor: Any, layout: Layout) -> bool:
    """Whether a second picture finds no place in a prompt."""
    one = noise("images")
    two = replace(one, frames=np.concatenate([one.frames] * 2), times=(0.0, 0.0))
    try:
        outputs = [run(processor, layout, [clip], PROBES[:1]) for clip in (one, two)]
        counts = [places(processor, found, media) for media, found in enumerate(outputs, 1)]
    except Exception as error:  # it may refuse in any way
        if out_of_memory(error):
            raise
        return True
    if counts[0]:
        return counts[1] <= counts[0]
    shown = next(value for name, value in outputs[1].items() if is_picture(name))
    return len(shown) != len(text_ids(outputs[1]))
