"""Turns frames into encoder inputs and later a prompt into decoder inputs, by the checkpoint's own
processor.

A processor computes pixels and, from them, the placeholders of each image in the prompt. Encoding
does both. Of the placeholders it keeps what is needed to build any prompt later without the image.
`input_layout` finds how to call the processor, and `side_inputs` what must be kept. A processor for
which this fails is refused before anything is encoded. For an image encoder, frames become inputs
without a prompt.

The module counts the text tokens that a processor writes around images: frame times, marks, a
template.

It tokenizes answers as they follow the generation prompt of a chat template. Some templates end the
generation prompt before the space that stands between role and answer in a conversation. A model
writes that space itself, mostly as part of its first word, so an answer that is tokenized alone has
another first token than the model ever wrote.
"""

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from artifacts.errors import UsageError
from artifacts.schema import MediaKind
from artifacts.texts.captions import behind_reasoning, ends_inside, has_tags
from stages.models.halves.records import OUTLINE
from stages.models.halves.split_route import overrides_generate
from stages.models.processors.blank_clips import Clip, black_clip
from stages.models.processors.input_layout import layout_of, noise
from stages.models.processors.known import known
from stages.models.processors.loading import takes_images, takes_videos
from stages.models.processors.placeholders import placeholder_tokens
from stages.models.processors.processor_calls import (
    PLAIN,
    WITH_PLACEHOLDERS,
    Layout,
    begins_itself,
    run,
    text_ids,
    write,
)
from stages.models.processors.side_inputs import (
    Prepared,
    Row,
    check_outline,
    restore,
    side_inputs_keeper,
)
from stages.models.protocols import ModelOrHalf, Processor, Tree
from stages.process.exit_diagnosis import out_of_memory

TOKENIZED = ("input_ids", "attention_mask")
"""Outputs of a tokenizer."""
DECODED = "decoder_input_ids"
"""Name of the prompt's tokens for the decoder of an encoder-decoder model."""


def channel_of(processor: Processor, kind: MediaKind) -> str:
    """Return how a clip is passed: as a video if the processor takes videos, else as images."""
    if kind == "video" and takes_videos(processor):
        return "videos"
    return "images" if takes_images(processor) else "videos"


def prepare(processor: Processor, clip: Clip, prompt: str = "") -> Prepared:
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
    processor: Processor, rows: Sequence[Row], prompts: Sequence[str], system: str = ""
) -> dict[str, Any]:
    """Return the processor's outputs besides pixels for these prompts and the media of the rows,
    padded on the left.

    All rows have the same channel. Raises UsageError if there is no place for a `system` text."""
    channel = rows[0].channel
    if any(row.channel != channel for row in rows):
        raise ValueError("rows with images and rows with videos cannot share a batch")
    _refuse_placeholders(processor, [*prompts, system])
    layout = replace(layout_of(processor, channel), system=system)
    if layout.alone and any(row.count.media > 1 for row in rows):
        hint = "Send one image, or use another model"
        raise UsageError("this model takes one image per prompt", hint=hint)
    return restore(processor, layout, rows, prompts)


def continues_prompt(processor: Processor, model: ModelOrHalf) -> bool:
    """Return whether the text is only the prompt, which may be empty, and a decoder continues it.
    Of a model with a text encoder, only `DECODED` goes to the decoder."""
    layout = layout_of(processor, channel_of(processor, "image"))
    if layout.form not in (PLAIN[0], WITH_PLACEHOLDERS):
        return False
    outputs = run(processor, layout, [noise(layout.channel)], [""])
    if model.config.is_encoder_decoder:
        return DECODED in outputs or encodes_pictures_alone(model)
    return text_ids(outputs).shape[1] > 0


def encodes_pictures_alone(model: ModelOrHalf) -> bool:
    """Return whether the encoder of an encoder-decoder model takes no text."""
    if model.main_input_name != "pixel_values":
        return False
    return "input_ids" not in inspect.signature(model.forward).parameters


def opens_reasoning(
    processor: Processor, layout: Layout, prompt: str, system: str = "", *, media: int = 1
) -> bool | None:
    """Return whether what the chat template writes after a prompt ends inside of a tag of
    reasoning; None for a template without such tags."""
    writer = processor if processor.chat_template else processor.tokenizer
    if not has_tags(str(writer.chat_template)):
        return None
    text = write(processor, layout.form, layout.channel, media, prompt, system)
    # Tags in the user's own text open nothing.
    return bool(ends_inside(text.rpartition(prompt.strip())[2] if prompt.strip() else text))


def drop_end_token(model: ModelOrHalf, inputs: dict[str, Tree]) -> dict[str, Tree]:
    """Return the inputs without the end token that some tokenizers add to a prompt.

    Those tokenizers were made for encoders; a decoder generates nothing after an end token. A model
    with its own `generate` handles its processor's outputs itself. If a model encodes pictures and
    no text, the prompt goes to its decoder."""
    if model.config.is_encoder_decoder and encodes_pictures_alone(model):
        inputs = {f"decoder_{n}" if n in TOKENIZED else n: value for n, value in inputs.items()}
    if DECODED in inputs and not text_ids(inputs).numel():  # the decoder's start token suffices
        return {n: v for n, v in inputs.items() if n not in (DECODED, "decoder_attention_mask")}
    if model.config.is_encoder_decoder or overrides_generate(model):
        return inputs
    ends = model.generation_config.eos_token_id
    return inputs if ends is None else without_last(inputs, ends)


def without_last(inputs: dict[str, Any], ends: int | Sequence[int]) -> dict[str, Any]:
    """Return the inputs of a decoder without the last token of each prompt, if all are of `ends`
    and more tokens are there."""
    ids = text_ids(inputs)
    if ids.shape[1] < 2 or not torch.isin(ids[:, -1], torch.tensor(ends)).all():
        return inputs
    return {
        name: value[:, :-1] if getattr(value, "shape", ())[:2] == ids.shape else value
        for name, value in inputs.items()
    }


def _seen(layout: Layout, clip: Clip) -> Clip:
    """Return the clip's middle frame if a prompt takes one image, else the whole clip."""
    return clip.middle() if layout.alone and len(clip.frames) > 1 else clip


def _refuse_placeholders(processor: Processor, prompts: Sequence[str]) -> None:
    placeholders = placeholder_tokens(processor)
    if words := [word for prompt in prompts for word in placeholders if word in prompt]:
        raise UsageError(
            f"the prompt contains {words[0]}, which this model reads as a placeholder",
            hint="Leave it out: images and sound are placed before the prompt",
        )


def text_inputs(
    processor: Processor, model: ModelOrHalf, prompt: str, system: str = "", *, length: int = 0
) -> dict[str, Tree]:
    """Return the inputs [1, tokens] of a model's `generate` for a turn without media, padded on the
    left to `length` tokens. The tokenizer reads the turn, because many processors take no text
    without an image. Raises UsageError if there is no place for a `system` text."""
    layout = layout_of(processor, channel_of(processor, "image"))
    text = write(processor, layout.form, layout.channel, 0, prompt, system).lstrip("\n")
    begins = {"add_special_tokens": False} if begins_itself(processor, layout, text) else {}
    filling = {"padding": "max_length", "max_length": length} if length else {}
    tokenized = processor.tokenizer([text], return_tensors="pt", **filling, **begins)
    return drop_end_token(model, dict(tokenized))


FEW, MORE = 2, 6
"""Frame counts of two videos whose prompts show what each frame adds."""
EDGE = 64
"""Side length of the frames in pixels."""
LONG_EDGE = 1280
"""Side length in pixels of a large frame, the largest whose tokens a profile holds."""
PROMPT = "?"


def prompt_overhead(processor: Processor, kind: MediaKind) -> tuple[int, int]:
    """Return the tokens of a prompt that are neither image tokens nor the user's text: in all, and
    per frame of this kind besides; 0 if unknown. Some processors write more around a large frame,
    such as a mark after each row: then it is as many as around that."""
    counts = (FEW, MORE) if kind == "video" else (1, 1)
    if kind == "video" and channel_of(processor, kind) == "images":
        counts = (1, MORE)
    try:
        few, more = (_text_tokens(processor, kind, count) for count in counts)
        large = _text_tokens(processor, kind, counts[0], LONG_EDGE) if kind == "video" else few
    except Exception as error:  # a processor may fail in any way; real frames will show the error
        if out_of_memory(error):
            raise
        return 0, 0
    per_frame = max(0, -(-(more - few) // max(1, counts[1] - counts[0])))
    added = max(0, -(-(large - few) // counts[0]))
    return max(0, few - counts[0] * per_frame), per_frame + added


def _text_tokens(processor: Processor, kind: MediaKind, count: int, edge: int = EDGE) -> int:
    """Return the tokens of a prompt with `count` square frames, without those of the frames
    themselves."""
    row = prepare(processor, black_clip(kind, count, edge, edge))
    return int(text_ids(rebuild(processor, [row], [PROMPT])).shape[1]) - row.count.tokens


QUESTION, ANSWER = "What?", "Answered."


def answer_ids(processor: Processor, text: str) -> list[int]:
    """Return the tokens of an answer, or of its beginning. They are those of the text alone, unless
    the template's own conversation has a blank before it, and both together begin with the tokens
    of the prompt."""
    prompt, blank = known(processor, "blank before answers", lambda: _before_answer(processor))
    if blank and text:
        begins, with_answer = (
            _ids(processor, string) for string in (prompt, f"{prompt}{blank}{text}")
        )
        if with_answer[: len(begins)] == begins:
            return with_answer[len(begins) :]
    return _ids(processor, text)


def full_answer_ids(processor: Processor, text: str) -> list[int]:
    """Return the tokens of a whole answer, such as a caption to train on. Where the template opens
    a tag of reasoning, the answer stands behind an empty one."""
    return answer_ids(processor, f"{reasoning_end(processor, text)}{text}")


def reasoning_end(processor: Processor, text: str) -> str:
    """Return what ends the reasoning that a template opens, before a whole answer; empty if it
    opens none, or the answer ends it itself."""
    prompt = known(processor, "generation prompt", lambda: _generation_prompt(processor))
    return behind_reasoning(prompt, text).removesuffix(text)


def answer_blank(processor: Processor) -> str:
    """Return the blank before answers; empty if answers have the same tokens without it."""
    same = answer_ids(processor, ANSWER) == _ids(processor, ANSWER)
    return "" if same else _before_answer(processor)[1]


def _before_answer(processor: Processor) -> tuple[str, str]:
    """Return a generation prompt, and the blank between it and the answer in a conversation."""
    writer = processor if processor.chat_template else processor.tokenizer
    for parts in (True, False):
        turns = [
            {"role": role, "content": [{"type": "text", "text": text}] if parts else text}
            for role, text in (("user", QUESTION), ("assistant", ANSWER))
        ]
        options = {"tokenize": False}
        try:
            prompt = writer.apply_chat_template(turns[:1], add_generation_prompt=True, **options)
            before, answer, _ = writer.apply_chat_template(turns, **options).partition(ANSWER)
        except Exception:  # no template, or one that refuses this form in any way
            continue
        if answer and before.startswith(prompt):
            blank = before.removeprefix(prompt)
            return prompt, "" if blank.strip() else blank
    return "", ""


def _generation_prompt(processor: Processor) -> str:
    """Return what a template writes behind a question."""
    layout = layout_of(processor, channel_of(processor, "image"))
    return write(processor, layout.form, layout.channel, 0, QUESTION).rpartition(QUESTION)[2]


def _ids(processor: Processor, text: str) -> list[int]:
    ids: list[int] = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
