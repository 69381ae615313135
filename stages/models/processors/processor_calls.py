"""Calls a processor with media and prompts in the form that its layout gives, as one chat turn.

A turn has its media first, and the same code serves all families. The checkpoint's own chat
template formats it. Without a template, the image placeholders come first and the prompt after
them. The prompt stands alone if the processor places the images itself, or if the model has no
placeholders in its text. Then the text begins with the prompt.

Templates take the content as a list of parts, as one string, or as either. A template that expects
a string may print a list in Python's notation. So a form is accepted only if its output contains a
test prompt verbatim: in a printed list the quotation marks differ. The form of a system text is
found separately in the same way.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from artifacts.disk.json_shapes import Json
from artifacts.errors import UsageError
from stages.models.processors.blank_clips import Clip, video_metadata
from stages.models.processors.known import known
from stages.models.processors.loading import is_image_output, to_images, without_outer_pair
from stages.models.processors.placeholders import count_places, token
from stages.models.profile import TURN
from stages.models.protocols import Processor, Tree

PARTS = "parts"
"""The chat template receives a list of images and text."""
STRING = "words"
"""The chat template receives one string, as templates of language models expect."""
PROMPT = "prompt"
"""The chat template receives only the prompt as a string, and places the image itself."""
TEMPLATED = (PARTS, STRING, PROMPT)
PLAIN = ("{prompt}", "{media}\n{prompt}")
"""Forms for a checkpoint without a chat template."""
WITH_PLACEHOLDERS = "{media}{prompt}"
"""Replaces the first form for a processor that wants the placeholders written out, although it can
insert them itself."""
TRIAL = "Say 'what', and \"how\"."
"""A text with both quotation marks; a printed list escapes one of them."""


def forms(processor: Processor) -> tuple[str, ...]:
    """Return the forms in which a turn may be written; the first that works is used."""
    if processor.chat_template:
        return (PARTS, STRING)
    return (PARTS, STRING, *PLAIN) if processor.tokenizer.chat_template else PLAIN


def last_forms(processor: Processor) -> tuple[str, ...]:
    """Return the forms that are tried if none of the others works."""
    return (PROMPT,) if processor.chat_template or processor.tokenizer.chat_template else ()


def write(
    processor: Processor,
    form: str,
    channel: str,
    media: int,
    prompt: str,
    system: str = "",
    sounds: int = 0,
) -> str:
    """Write the text of one turn with `media` images or videos and `sounds` behind them, after a
    `system` text. Raises UsageError if the form has no place for a system text."""
    if form not in TEMPLATED:
        if system:
            raise without_system()
        placeholders = _placeholders(processor, channel, media, sounds)
        joined = prompt.replace(TURN, "\n")
        return form.replace("{media}", placeholders).replace("{prompt}", joined)
    asked, *later = prompt.split(TURN)
    turns = [_question(processor, form, channel, media, asked, sounds)]
    for at, said in enumerate(later):
        turns.append(_turn(("assistant", "user")[at % 2], form, said))
    if system:
        if not (way := system_form(processor, form)):
            raise without_system()
        turns.insert(0, _turn("system", way, system))
    text = _templated(processor, turns)
    if system.strip() not in text:
        raise without_system()
    if any(said.strip() not in text for said in later):
        raise UsageError(
            "the chat template of this model has no place for earlier answers",
            hint="Send one question, in messages of the roles system, developer and user",
        )
    return text


def exact(processor: Processor, form: str, channel: str) -> bool:
    """Return whether this form keeps a question verbatim, with its image placeholder at most once
    and no other kind of medium."""
    if form not in TEMPLATED:
        return True
    text = _templated(processor, [_question(processor, form, channel, 1, TRIAL)])
    word = token(processor, channel.removesuffix("s"))
    if TRIAL not in text or (form != PARTS and word and text.count(word) > 1):
        return False
    others = {token(processor, kind) for kind in ("image", "video")} - {word, ""}
    return form != PROMPT or not any(other in text for other in others)


def system_form(processor: Processor, form: str) -> str:
    """Return the form that keeps a system text verbatim before a question in `form`: `parts` or
    `words`; empty if there is none."""
    return known(processor, f"form of a system text before {form}", lambda: _find(processor, form))


def without_system() -> UsageError:
    return UsageError(
        "the chat template of this model has no place for --system",
        hint="Put that text at the start of --prompt",
    )


def _find(processor: Processor, form: str) -> str:
    ways = {PARTS: (PARTS, STRING), STRING: (STRING,), PROMPT: (STRING,)}.get(form, ())
    return next((way for way in ways if TRIAL in _render_system(processor, form, way, TRIAL)), "")


def _render_system(processor: Processor, form: str, way: str, system: str) -> str:
    """Return a turn with a system text in this form; empty if the template refuses it."""
    question = _question(processor, form, "images", 0, "What?")
    try:
        return _templated(processor, [_turn("system", way, system), question])
    except Exception:  # a template may refuse a role in any way
        return ""


def _question(
    processor: Processor, form: str, channel: str, media: int, prompt: str, sounds: int = 0
) -> dict[str, Any]:
    kinds = [channel.removesuffix("s")] * media + ["audio"] * sounds
    content: Any = prompt
    if form == PARTS:
        content = [*({"type": kind} for kind in kinds), {"type": "text", "text": prompt}]
    elif form == STRING and (placeholders := _placeholders(processor, channel, media, sounds)):
        content = f"{placeholders}\n{prompt}"
    return {"role": "user", "content": content}


def _placeholders(processor: Processor, channel: str, media: int, sounds: int) -> str:
    return token(processor, channel.removesuffix("s")) * media + token(processor, "audio") * sounds


def _turn(role: str, way: str, text: str) -> dict[str, Json]:
    return {"role": role, "content": [{"type": "text", "text": text}] if way == PARTS else text}


def _templated(processor: Processor, turns: list[dict[str, Any]]) -> str:
    writer = processor if processor.chat_template else processor.tokenizer
    text: str = writer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return without_outer_pair(processor, text)


TEXT_IDS = ("input_ids", "decoder_input_ids", "labels")
"""Names under which processors return the tokens of the text."""
SAMPLE, TIMES, RETURN_METADATA = "do_sample_frames", "video_metadata", "return_metadata"
"""Options for videos: whether the processor samples frames, the times of the frames, and whether it
returns their metadata, which some processors need while they write the prompt."""
RATE = "fps"
"""Option for videos: the rate of the frames, one number for all videos of a call. Some processors
compute times from it, and take a constant if it is not given, whatever the metadata says."""


INTERLEAVED, SEPARATE = "interleaved", "separate"
"""Places of a video's sound: among its placeholders, by time, or behind them as a part of its own
of the turn."""


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
    sound: str = ""
    """Place of the sound of clips that have some: `interleaved` or `separate`; empty: none."""


def run(
    processor: Processor, layout: Layout, clips: Sequence[Clip], prompts: Sequence[str]
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
    sounds = [clip.sound for clip in clips if clip.sound is not None]
    if sounds:  # many warn without it
        options["sampling_rate"] = processor._audio_processor.sampling_rate
    if layout.sound == INTERLEAVED:
        options |= {"load_audio_from_video": True, "audio_from_video_indices": [*range(len(clips))]}
    separate = int(layout.sound == SEPARATE)
    texts = [
        write(processor, layout.form, layout.channel, len(row), prompt, layout.system, separate)
        for row, prompt in zip(rows, prompts, strict=True)
    ]
    if begins_itself(processor, layout, texts[0]):
        options["add_special_tokens"] = False
    media = rows if layout.nested else list(itertools.chain.from_iterable(rows))
    arguments = {"text": texts, layout.argument: media, **({"audio": sounds} if sounds else {})}
    outputs = dict(processor(**arguments, return_tensors="pt", padding=True, **options))
    outputs.pop(TIMES, None)
    return outputs


def begins_itself(processor: Processor, layout: Layout, text: str) -> bool:
    """Return whether the template has already written the text's begin token, so that it is not
    added again. `apply_chat_template` uses the same rule."""
    bos = processor.tokenizer.bos_token
    return layout.form in TEMPLATED and bos is not None and text.startswith(bos)


def _padded(processor: Processor, rows: list[dict[str, Any]]) -> dict[str, Any]:
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


def joined(values: list[Any]) -> Any:
    """Join one output of several rows: concatenate tensors and sequences; others must be equal."""
    if isinstance(values[0], torch.Tensor):
        return torch.cat(values)
    if isinstance(values[0], list | tuple):
        return list(itertools.chain.from_iterable(values))
    if any(value != values[0] for value in values):
        raise ValueError(f"outputs that differ between rows cannot be joined: {values}")
    return values[0]


def same(outputs: Any, expected: Any) -> bool:
    """Return whether outputs of a processor are equal, tensors bit by bit."""
    if isinstance(expected, dict):
        equal = outputs.keys() == expected.keys()
        return equal and all(same(outputs[name], expected[name]) for name in expected)
    if isinstance(expected, torch.Tensor):
        return isinstance(outputs, torch.Tensor) and torch.equal(outputs, expected)
    return repr(outputs) == repr(expected)


def places(processor: Processor, outputs: Mapping[str, Tree], media: int) -> int:
    """Return how many features belong in the first row of a processor's outputs."""
    return count_places(processor, text_ids(outputs)[0].tolist(), media)


def text_ids(outputs: Mapping[str, Tree]) -> torch.Tensor:
    """Return the tokens of the text, one row per prompt. Raises ValueError if there are none."""
    name = next((name for name in TEXT_IDS if name in outputs), None)
    if name is None:
        raise ValueError(f"the processor returned no tokens, only {', '.join(outputs)}")
    return torch.as_tensor(outputs[name])


def _media(layout: Layout, clip: Clip) -> list[Any]:
    return [clip.frames] if layout.channel == "videos" else to_images(clip.frames)
