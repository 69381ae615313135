"""Turns frames into encoder inputs and later a prompt into decoder inputs, by the checkpoint's own
processor.

A processor computes pixels and, from them, the placeholders of each image in the prompt. Encoding
does both. Of the second it keeps what is needed to build any prompt later without the image.
`input_layout` finds how to call the processor, and `side_inputs` what must be kept. A processor for
which this fails is refused before anything is encoded.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from artifacts.errors import UsageError
from artifacts.reasoning import ends_inside, has_tags
from artifacts.schema import MediaKind
from stages.models.halves.routes import overrides_generate
from stages.models.processors.calling import Layout, begins_itself, run, text_ids
from stages.models.processors.chat_template import PLAIN, WITH_PLACEHOLDERS, write
from stages.models.processors.clip import Clip, video_metadata
from stages.models.processors.input_layout import layout_of, noise
from stages.models.processors.loading import (
    known,
    load_processor,
    placeholder_tokens,
    takes_images,
    takes_videos,
)
from stages.models.processors.side_inputs import (
    OUTLINE,
    Prepared,
    Row,
    check_outline,
    joined,
    restore,
    side_inputs_keeper,
)

DECODED = "decoder_input_ids"
"""Name of the prompt's tokens for the decoder of an encoder-decoder model."""

__all__ = [
    "Clip",
    "Prepared",
    "Row",
    "channel_of",
    "continues_prompt",
    "drop_end_token",
    "joined",
    "load_processor",
    "opens_reasoning",
    "placeholder_tokens",
    "prepare",
    "rebuild",
    "takes_videos",
    "text_inputs",
    "video_metadata",
]


def channel_of(processor: Any, kind: MediaKind) -> str:
    """Return how a clip is passed: as a video if the processor takes videos, else as images."""
    if kind == "video" and takes_videos(processor):
        return "videos"
    return "images" if takes_images(processor) else "videos"


def prepare(processor: Any, clip: Clip, prompt: str = "") -> Prepared:
    """Run the processor on one chunk's frames and keep everything that its prompts will need.
    `prompt` matters only to encoders that read it."""
    layout = layout_of(processor, channel_of(processor, clip.kind))
    clip = _seen(layout, clip)
    way = f"way of keeping {layout.channel}"
    row = known(processor, way, lambda: side_inputs_keeper(processor, layout))(
        processor, layout, clip, prompt
    )
    if OUTLINE in row.side:
        known(processor, f"check of {way}", lambda: check_outline(processor, layout, clip, row))
    return row


def rebuild(
    processor: Any, rows: Sequence[Row], prompts: Sequence[str], system: str = ""
) -> dict[str, Any]:
    """Return the processor's outputs besides pixels for these prompts and the media of the rows,
    padded on the left.

    All rows have the same channel. Raises UsageError if there is no place for a `system` text."""
    channel = rows[0].channel
    if any(row.channel != channel for row in rows):
        raise ValueError("rows with images and rows with videos cannot share a batch")
    _refuse_placeholders(processor, [*prompts, system])
    layout = replace(layout_of(processor, channel), system=system)
    return restore(processor, layout, rows, prompts)


def continues_prompt(processor: Any, encodes: bool) -> bool:
    """Return whether the text is only the prompt, which may be empty, and a decoder continues it.
    `encodes`: the model has a text encoder, and only `DECODED` goes to its decoder."""
    layout = layout_of(processor, channel_of(processor, "image"))
    if layout.form not in (PLAIN[0], WITH_PLACEHOLDERS):
        return False
    outputs = run(processor, layout, [noise(layout.channel)], [""])
    return DECODED in outputs if encodes else text_ids(outputs).shape[1] > 0


def opens_reasoning(
    processor: Any, layout: Layout, prompt: str, system: str = "", *, media: int = 1
) -> bool | None:
    """Return whether what the chat template writes after a prompt ends inside of a tag of
    reasoning; None for a template without such tags."""
    writer = processor if processor.chat_template else processor.tokenizer
    if not has_tags(str(writer.chat_template)):
        return None
    text = write(processor, layout.form, layout.channel, media, prompt, system)
    # Tags in the user's own text open nothing.
    return bool(ends_inside(text.rpartition(prompt.strip())[2] if prompt.strip() else text))


def drop_end_token(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """Return the inputs without the end token that some tokenizers add to a prompt.

    Those tokenizers were made for encoders; a decoder generates nothing after an end token. A model
    with its own `generate` handles its processor's outputs itself."""
    if DECODED in inputs and not text_ids(inputs).numel():  # the decoder's start token suffices
        return {n: v for n, v in inputs.items() if n not in (DECODED, "decoder_attention_mask")}
    if model.config.is_encoder_decoder or overrides_generate(model):
        return inputs
    ids, ends = text_ids(inputs), model.generation_config.eos_token_id
    last = torch.isin(ids[:, -1], torch.tensor(ends)) if ends is not None else torch.zeros(1)
    if ids.shape[1] < 2 or not last.all():
        return inputs
    return {
        name: value[:, :-1] if getattr(value, "shape", ())[:2] == ids.shape else value
        for name, value in inputs.items()
    }


def _seen(layout: Layout, clip: Clip) -> Clip:
    """Return the clip's middle frame if a prompt takes one image, else the whole clip."""
    return clip.middle() if layout.alone and len(clip.frames) > 1 else clip


def _refuse_placeholders(processor: Any, prompts: Sequence[str]) -> None:
    placeholders = placeholder_tokens(processor)
    if found := [word for prompt in prompts for word in placeholders if word in prompt]:
        raise UsageError(
            f"the prompt contains {found[0]}, which this model reads as an image placeholder",
            hint="Leave it out: each image is placed before the prompt",
        )


def text_inputs(
    processor: Any, model: Any, prompt: str, system: str = "", *, length: int = 0
) -> dict[str, Any]:
    """Return the inputs [1, tokens] of a model's `generate` for a turn without media, padded on the
    left to `length` tokens. The tokenizer reads the turn, because many processors take no text
    without an image. Raises UsageError if there is no place for a `system` text."""
    layout = layout_of(processor, channel_of(processor, "image"))
    text = write(processor, layout.form, layout.channel, 0, prompt, system).lstrip("\n")
    begins = {"add_special_tokens": False} if begins_itself(processor, layout, text) else {}
    filling = {"padding": "max_length", "max_length": length} if length else {}
    made = processor.tokenizer([text], return_tensors="pt", **filling, **begins)
    return drop_end_token(model, dict(made))
