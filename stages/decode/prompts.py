"""Builds the decoder inputs of rows: prompts and the forced beginning of a caption. Detects
repetitive captions, and chooses the parameters of their retry.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from artifacts.errors import UsageError
from artifacts.texts.captions import Ended
from stages.decode.generation import SamplingParams
from stages.models.context_length import context_tokens
from stages.models.processors.prepare import DECODED, answer_ids, drop_end_token, rebuild
from stages.models.processors.side_inputs import Row
from stages.models.protocols import Half, Processor


class ContextExceeded(UsageError):
    """A prompt, its images and the longest caption together exceed the model's context."""


def check_context(
    half: Half, inputs: Mapping[str, Any], new_tokens: int, *, whole: bool = True
) -> None:
    """Raise ContextExceeded if the prompt and `new_tokens` more tokens exceed the context. Without
    `whole`, raise it only if there is no room for one more token."""
    room = context_left(half, inputs)
    if room is not None and (new_tokens if whole else 1) > room:
        context, read = context_tokens(half.config), int(inputs["input_ids"].shape[1])
        raise ContextExceeded(
            f"the prompt is too long: the model's context is {context:,} tokens, prompt and images "
            f"take {read:,}, and the answer up to {new_tokens:,}",
            hint="Use a shorter prompt, fewer images or frames, or a smaller token limit",
        )


def context_left(half: Half, inputs: Mapping[str, Any]) -> int | None:
    """Return the number of tokens that the prompt leaves for the answer; None: no limit."""
    context = 0 if half.config.is_encoder_decoder else context_tokens(half.config)
    return context - int(inputs["input_ids"].shape[1]) if context else None


def prompts_for(
    half: Half,
    processor: Processor,
    rows: Sequence[Row],
    prompts: Sequence[str],
    params: SamplingParams,
) -> dict[str, Any]:
    """Return the inputs of `generate` without pixel values, the forced beginning of the captions
    included. Raises UsageError if the model has no place for a system prompt."""
    inputs = drop_end_token(half, rebuild(processor, rows, prompts, params.system))
    start = start_ids(processor, params)
    return append_ids(half, inputs, start.expand(len(rows), -1)) if start.numel() else inputs


def end_ids_of(half: Half) -> list[int]:
    ends = half.generation_config.eos_token_id
    ends = half.config.get_text_config().eos_token_id if ends is None else ends
    return [ends] if isinstance(ends, int) else list(ends or ())


def start_ids(processor: Processor, params: SamplingParams) -> torch.Tensor:
    """Return the tokens that every caption begins with, of shape [1, tokens]."""
    if not params.start_with:
        return torch.zeros((1, 0), dtype=torch.long)
    return torch.tensor([answer_ids(processor, params.start_with)], dtype=torch.long)


def append_ids(half: Half, inputs: Mapping[str, Any], ids: torch.Tensor) -> dict[str, Any]:
    """Append caption tokens of shape [1, tokens] to the prompt. If the prompt goes to an encoder,
    they become the beginning of the decoder's input."""
    if half.config.is_encoder_decoder:
        start = inputs.get(DECODED)
        if start is None:
            first = half.generation_config.decoder_start_token_id
            start = torch.full((1, 1), half.config.bos_token_id if first is None else first)
        return {**inputs, DECODED: torch.cat([start.expand(len(ids), -1), ids], 1)}
    return append_tokens(inputs, ids)


def append_tokens(inputs: Mapping[str, Any], ids: torch.Tensor) -> dict[str, Any]:
    """Append tokens of text of shape [rows, tokens] to the prompts of a decoder."""
    length = inputs["input_ids"].shape
    added = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    zeros = torch.zeros_like(ids)  # no image token, in any other input with one value per token
    return {
        name: torch.cat([value, added.get(name, zeros).to(value.dtype)], 1)
        if getattr(value, "shape", None) == length
        else value
        for name, value in inputs.items()
    }


TIMES = 3
"""Number of repetitions at the end of a caption that count as repetitive."""
LETTERS = 40
"""Minimum number of characters of these repetitions together: `ha ha ha` is too short."""
PENALTY, NGRAM = 1.1, 4
"""Parameters of the retry: a repetition penalty, and no four tokens twice."""


def is_repetitive(text: str, finish_reason: Ended) -> bool:
    """Return whether a caption reached its token limit while it repeated the same text. The last
    repetition may be incomplete."""
    return finish_reason == "length" and any(
        _repeated(text, period) >= max(TIMES * period, LETTERS)
        for period in range(1, len(text) // TIMES + 1)
    )


def _repeated(text: str, period: int) -> int:
    """Return how many characters at the end are periodic, the first period included."""
    count = 0
    for now, before in zip(reversed(text), reversed(text[:-period]), strict=False):
        if now != before:
            break
        count += 1
    return count + period if count else 0


def retry_params(params: SamplingParams) -> SamplingParams:
    return replace(
        params,
        repetition_penalty=max(params.repetition_penalty or 1.0, PENALTY),
        no_repeat_ngram=params.no_repeat_ngram or NGRAM,
    )
