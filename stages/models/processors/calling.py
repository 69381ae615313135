"""Calls a processor with media and prompts in the form that its layout gives."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from stages.models.processors.chat_template import TEMPLATED, write
from stages.models.processors.clip import Clip, to_images, video_metadata
from stages.models.processors.loading import count_places, is_image_output

TEXT_IDS = ("input_ids", "decoder_input_ids", "labels")
"""Names under which processors return the tokens of the text."""
SAMPLE, TIMES, RETURN_METADATA = "do_sample_frames", "video_metadata", "return_metadata"
"""Options for videos: whether the processor samples frames, the times of the frames, and whether it
returns their metadata, which some processors need while they write the prompt."""
RATE = "fps"
"""Option for videos: the rate of the frames, one number for all videos of a call. Some processors
compute times from it, and take a constant if it is not given, whatever the metadata says."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """How a processor is called with media of one kind."""

    channel: str
    """`images` or `videos`."""
    argument: str
    """The processor's argument for the media; some processors take videos as `images`."""
    nested: bool
    """Whether the argument is one list per prompt instead of one list for all."""
    options: tuple[str, ...] = ()
    """Options for videos that the processor accepts."""
    batched: bool = True
    """Whether it takes several prompts at once."""
    form: str
    """The form in which a turn is written; see `chat_template`."""
    alone: bool = False
    """Whether a prompt takes at most one image."""
    system: str = ""
    """System text before the question; empty: none."""


def run(
    processor: Any, layout: Layout, clips: Sequence[Clip], prompts: Sequence[str]
) -> dict[str, Any]:
    """Return all outputs of the processor for these media and prompts."""
    rates = {video_metadata(clip)["fps"] for clip in clips} if RATE in layout.options else set()
    if len(clips) > 1 and (len(rates) > 1 or not layout.batched):
        pairs = zip(clips, prompts, strict=True)
        return _padded(processor, [run(processor, layout, [c], [p]) for c, p in pairs])
    rows = [_media(layout, clip) for clip in clips]
    options: dict[str, Any] = {}
    if SAMPLE in layout.options:
        options[SAMPLE] = False
    if RETURN_METADATA in layout.options:
        options[RETURN_METADATA] = True
    if rates:
        options[RATE] = rates.pop()
    if TIMES in layout.options:
        times: list[Any] = [[video_metadata(clip)] for clip in clips]
        options[TIMES] = times if layout.nested else list(itertools.chain.from_iterable(times))
    texts = [
        write(processor, layout.form, layout.channel, len(row), prompt, layout.system)
        for row, prompt in zip(rows, prompts, strict=True)
    ]
    if begins_itself(processor, layout, texts[0]):
        options["add_special_tokens"] = False
    media = rows if layout.nested else list(itertools.chain.from_iterable(rows))
    given = {"text": texts, layout.argument: media}
    outputs = dict(processor(**given, return_tensors="pt", padding=True, **options))
    outputs.pop(TIMES, None)
    return outputs


def begins_itself(processor: Any, layout: Layout, text: str) -> bool:
    """Return whether the template has already written the text's begin token, so that it is not
    added again. `apply_chat_template` uses the same rule."""
    bos = processor.tokenizer.bos_token
    return layout.form in TEMPLATED and bos is not None and text.startswith(bos)


def _padded(processor: Any, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Join the outputs of several calls into one batch. Outputs with one number per text token are
    padded on the left, token ids with the padding token, others with 0."""
    length = max(text_ids(row).shape[1] for row in rows)
    joined: dict[str, Any] = {}
    for name in rows[0]:
        parts = []
        if rows[0][name] is None:
            continue
        for row in rows:
            ids, value = text_ids(row), torch.as_tensor(row[name])
            if value.shape[:2] == ids.shape and not is_image_output(name):
                fill = processor.tokenizer.pad_token_id if name in TEXT_IDS else 0
                missing = (1, length - ids.shape[1], *value.shape[2:])
                value = torch.cat([value.new_full(missing, fill), value], dim=1)
            parts.append(value)
        joined[name] = torch.cat(parts)
    return joined


def same(outputs: Any, expected: Any) -> bool:
    """Return whether outputs of a processor are equal, tensors bit by bit."""
    if isinstance(expected, dict):
        equal = outputs.keys() == expected.keys()
        return equal and all(same(outputs[name], expected[name]) for name in expected)
    if isinstance(expected, torch.Tensor):
        return isinstance(outputs, torch.Tensor) and torch.equal(outputs, expected)
    return repr(outputs) == repr(expected)


def places(processor: Any, outputs: dict[str, Any], media: int) -> int:
    """Return how many features belong in the first row of a processor's outputs."""
    return count_places(processor, text_ids(outputs)[0].tolist(), media)


def text_ids(outputs: dict[str, Any]) -> torch.Tensor:
    """Return the tokens of the text, one row per prompt. Raises ValueError if there are none."""
    name = next((name for name in TEXT_IDS if name in outputs), None)
    if name is None:
        raise ValueError(f"the processor returned no tokens, only {', '.join(outputs)}")
    return torch.as_tensor(outputs[name])


def _media(layout: Layout, clip: Clip) -> list[Any]:
    return [clip.frames] if layout.channel == "videos" else to_images(clip.frames)
