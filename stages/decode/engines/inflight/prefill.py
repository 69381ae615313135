"""Prefills one prompt, alone and without padding.

`generate` prepares everything that the model family needs: positions, masks, features, logits
processors. It then calls `park` in place of its own decoding loop. `park` runs the prefill and
keeps its result.
"""

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from stages.decode.engines.inflight.cache_layers import UnsupportedCacheError
from stages.models.halves.delivery import generate
from stages.models.halves.features import Features, placeholder_ids
from stages.models.halves.routes import choose_route

TOKEN_TYPES = ("token_type_ids", "mm_token_type_ids", "moe_mm_token_type_ids")
"""Names under which a model is told the kind of each token."""
TEXT_TYPES = ("mm_token_type_ids", "moe_mm_token_type_ids")
"""Those of them in which a token that was made is text, 0; in others it is what came before it."""
EXTRA_INPUTS = ("use_cache", "logits_to_keep")
"""What `generate` tells a model at every token, besides what hangs on the row."""
ENDINGS = ("MaxLengthCriteria", "EosTokenCriteria")
"""The ways in which a caption may end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderOutput:
    """The encoder output of one prompt."""

    cache: Any
    """What the decoder's layers make of it."""
    mask: torch.Tensor
    """Which tokens of it are seen, of shape [1, tokens]."""
    hidden: torch.Tensor
    """The encoder's states, of shape [1, tokens, width]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PrefilledSequence:
    """A sequence after prefill."""

    model: Any
    """What makes the next token: the half, or the reader within it."""
    cache: Any
    """What its layers remember of the prompt, or of a caption's beginning."""
    tokens: int
    """How many tokens they remember."""
    position: torch.Tensor
    """Position of the next token, of shape [..., 1, 1]."""
    positions_name: str
    """Name under which the model takes positions; empty: it counts them itself."""
    token_types: Mapping[str, torch.Tensor]
    """Kind of the next token, of shape [1, 1], by the name under which the model takes it."""
    extra_inputs: Mapping[str, Any]
    """What the model is told at every token besides."""
    ids: torch.Tensor
    """The prompt as those see it who change its logits, of shape [1, tokens]."""
    processors: Any
    """What changes its logits, in order."""
    eos_token_ids: frozenset[int]
    """Tokens that end it."""
    max_new_tokens: int
    """Most tokens of its caption."""
    logits: torch.Tensor
    """The logits of its first token, of shape [1, words]."""
    encoder_output: EncoderOutput | None = None
    """What it was encoded to, of a half that has an encoder for prompts."""
    step: Callable[..., Any] | None = None
    """What computes a step in place of the model itself, such as the model compiled."""
    stopped: Callable[[Sequence[int]], bool] | None = None
    """Whether its new tokens end it, besides one of `ends`; None: they do not."""

    @property
    def prompt_tokens(self) -> int:
        """Return the tokens of its prompt, those of pictures among them."""
        return int(self.encoder_output.mask.sum()) if self.encoder_output else self.tokens


def prefill_row(
    half: Any, inputs: Mapping[str, Any], features: Mapping[str, Any], **options: Any
) -> PrefilledSequence:
    """Return the row, its prompt read. Raises CannotSeat for a half that reads otherwise."""
    read: list[PrefilledSequence] = []

    # The names are those by which `generate` tells what it takes itself from what it hands on.
    def park(
        model: Any,
        input_ids: torch.Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        _refuse(model, stopping_criteria, kwargs)
        output = model._prefill(input_ids, generation_config, kwargs)
        read.append(
            _prefilled(model, input_ids, logits_processor, generation_config, kwargs, output)
        )
        return input_ids

    generate(half, inputs, features, custom_generate=park, **options)
    if len(read) != 1:
        raise UnsupportedCacheError("its generate does not read a prompt as others do")
    return read[0]


def positions_of(half: Any, inputs: Mapping[str, Any], features: Mapping[str, Any]) -> torch.Tensor:
    """Return the positions of a prompt's tokens [..., 1, tokens], as `generate` counts them. Raises
    CannotSeat for a half whose `generate` does not."""
    seen_positions: list[torch.Tensor | None] = []

    def note(model: Any, input_ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        seen_positions.append(kwargs.get("position_ids"))
        return input_ids

    generate(half, inputs, features, custom_generate=note, max_new_tokens=1, min_new_tokens=0)
    if len(seen_positions) != 1 or seen_positions[0] is None:
        raise UnsupportedCacheError("it is not told the positions of tokens")
    return seen_positions[0]


def _refuse(model: Any, stopping_criteria: Any, kwargs: Mapping[str, Any]) -> None:
    """Raise CannotSeat for what cannot be done row by row."""
    if kwargs.get("position_ids") is None and not model.config.is_encoder_decoder:
        raise UnsupportedCacheError("it is not told the positions of tokens")
    mask = kwargs.get("attention_mask")
    if mask is not None and (mask == 0).any():
        raise UnsupportedCacheError("some of its prompt is masked")
    if others := [
        type(each).__name__ for each in stopping_criteria if type(each).__name__ not in ENDINGS
    ]:
        raise UnsupportedCacheError(f"its captions may end by {others[0]}")


def _prefilled(
    model: Any, ids: torch.Tensor, processors: Any, generation_config: Any, kwargs: Any, output: Any
) -> PrefilledSequence:
    cache = output.past_key_values
    eos_token_ids = generation_config._eos_token_tensor
    return PrefilledSequence(
        model=model,
        **(_encoder_fields if model.config.is_encoder_decoder else _decoder_fields)(
            model, cache, ids, kwargs
        ),
        tokens=cache.get_seq_length(),
        token_types={
            name: _next_type(name, kwargs[name])
            for name in TOKEN_TYPES
            if kwargs.get(name) is not None
        },
        extra_inputs={name: kwargs[name] for name in EXTRA_INPUTS if name in kwargs},
        ids=ids,
        processors=processors,
        eos_token_ids=frozenset(() if eos_token_ids is None else eos_token_ids.flatten().tolist()),
        max_new_tokens=generation_config.max_new_tokens,
        logits=output.logits[:, -1].to(copy=True, dtype=torch.float32),
    )


def _decoder_fields(model: Any, cache: Any, ids: torch.Tensor, kwargs: Any) -> dict[str, Any]:
    """Return what hangs on there being no encoder."""
    position = kwargs["position_ids"][..., -1:] + 1
    return {"cache": cache, "position": position, "positions_name": "position_ids"}


def _encoder_fields(model: Any, cache: Any, ids: torch.Tensor, kwargs: Any) -> dict[str, Any]:
    """Return the same where the prompt went to an encoder, and a caption was begun."""
    hidden, mask = kwargs["encoder_outputs"][0], kwargs.get("attention_mask")
    seen = torch.ones(hidden.shape[:2], dtype=torch.long, device=ids.device)
    encoder_output = EncoderOutput(
        cache=cache.cross_attention_cache, mask=seen if mask is None else mask, hidden=hidden
    )
    takes = "decoder_position_ids" in inspect.signature(model.forward).parameters
    return {
        "cache": cache.self_attention_cache,
        "encoder_output": encoder_output,
        "position": torch.full_like(ids[:, -1:], cache.get_seq_length()),
        "positions_name": "decoder_position_ids" if takes else "",
    }


def _next_type(name: str, token_types: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(token_types[:, -1:]) if name in TEXT_TYPES else token_types[:, -1:]


def select_token_ids(
    row: PrefilledSequence, ids: torch.Tensor, logits: torch.Tensor
) -> torch.Tensor:
    """Return the token that the row goes on with, of shape [1, 1]. `ids` are all before it."""
    return row.processors(ids, logits).argmax(-1, keepdim=True)  # type: ignore[no-any-return]


ONE_TOKEN = {"max_new_tokens": 1, "min_new_tokens": 0}
"""What is asked of a beginning, of which no word is taken."""


class SharedPrefix:
    """The KV cache of the prompt prefix that the last chunk's prompts share."""

    def __init__(self) -> None:
        self._of = ""
        self._ids: list[int] = []
        self._cache: Any = None

    def prefill_from_prefix(
        self,
        half: Any,
        chunk_key: str,
        inputs: Mapping[str, Any],
        features: Features,
        **options: Any,
    ) -> PrefilledSequence:
        """Return a row, its prompt read; `of` names the chunk. Raises CannotSeat for a half or a
        prompt that has nothing to share."""
        length = _shared_tokens(half, inputs)
        # Of a beginning alone, or of an end, some families would count other positions.
        positions = positions_of(half, inputs, features)
        ids = inputs["input_ids"][0, :length].tolist()
        if (chunk_key, ids) != (self._of, self._ids):
            self.forget()
            # What chooses words has nothing to choose of a beginning.
            prefill_kwargs = {n: v for n, v in options.items() if n == "prefill_chunk_size"}
            prefix_inputs = {**_beginning(inputs, length), "position_ids": positions[..., :length]}
            self._cache = prefill_row(
                half, prefix_inputs, features, **ONE_TOKEN, **prefill_kwargs
            ).cache
            self._of, self._ids = chunk_key, ids
        cache = copy.deepcopy(self._cache)
        rest = Features({}, features.needs, already_read=True)
        whole = {**inputs, "position_ids": positions}
        return prefill_row(half, whole, rest, past_key_values=cache, **options)

    def forget(self) -> None:
        """Give back what is kept."""
        self._of, self._ids, self._cache = "", [], None


def _shared_tokens(half: Any, inputs: Mapping[str, Any]) -> int:
    """Return how many tokens there are up to the last one of a picture."""
    if half.config.is_encoder_decoder:
        raise UnsupportedCacheError("its prompt goes to an encoder")
    if choose_route(half).route != "protocol":
        raise UnsupportedCacheError("its pictures are not handed to generate")
    ids = inputs["input_ids"][0]
    image_ids = torch.tensor(sorted(placeholder_ids(half.config)), device=ids.device)
    positions_of_images = torch.isin(ids, image_ids).nonzero().flatten().tolist()
    if not positions_of_images or positions_of_images[-1] + 1 >= len(ids):
        raise UnsupportedCacheError("its prompts do not begin with their pictures")
    return int(positions_of_images[-1]) + 1


def _beginning(inputs: Mapping[str, Any], length: int) -> dict[str, Any]:
    """Return the inputs of so many tokens; what is not of tokens, such as grids, stays whole."""
    shape = inputs["input_ids"].shape
    return {
        name: value[:, :length] if getattr(value, "shape", ())[:2] == shape else value
        for name, value in inputs.items()
    }
