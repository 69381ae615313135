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

TYPES = ("token_type_ids", "mm_token_type_ids", "moe_mm_token_type_ids")
"""Names under which a model is told the kind of each token."""
OF_TEXT = ("mm_token_type_ids", "moe_mm_token_type_ids")
"""Those of them in which a token that was made is text, 0; in others it is what came before it."""
ALONG = ("use_cache", "logits_to_keep")
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
    positions_as: str
    """Name under which the model takes positions; empty: it counts them itself."""
    types: Mapping[str, torch.Tensor]
    """Kind of the next token, of shape [1, 1], by the name under which the model takes it."""
    along: Mapping[str, Any]
    """What the model is told at every token besides."""
    ids: torch.Tensor
    """The prompt as those see it who change its logits, of shape [1, tokens]."""
    processors: Any
    """What changes its logits, in order."""
    ends: frozenset[int]
    """Tokens that end it."""
    limit: int
    """Most tokens of its caption."""
    logits: torch.Tensor
    """The logits of its first token, of shape [1, words]."""
    source: EncoderOutput | None = None
    """What it was encoded to, of a half that has an encoder for prompts."""
    step: Callable[..., Any] | None = None
    """What computes a step in place of the model itself, such as the model compiled."""
    stopped: Callable[[Sequence[int]], bool] | None = None
    """Whether its new tokens end it, besides one of `ends`; None: they do not."""

    @property
    def prompt_tokens(self) -> int:
        """Return the tokens of its prompt, those of pictures among them."""
        return int(self.source.mask.sum()) if self.source else self.tokens


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
        **told: Any,
    ) -> torch.Tensor:
        _refuse(model, stopping_criteria, told)
        output = model._prefill(input_ids, generation_config, told)
        read.append(_row(model, input_ids, logits_processor, generation_config, told, output))
        return input_ids

    generate(half, inputs, features, custom_generate=park, **options)
    if len(read) != 1:
        raise UnsupportedCacheError("its generate does not read a prompt as others do")
    return read[0]


def positions_of(half: Any, inputs: Mapping[str, Any], features: Mapping[str, Any]) -> torch.Tensor:
    """Return the positions of a prompt's tokens [..., 1, tokens], as `generate` counts them. Raises
    CannotSeat for a half whose `generate` does not."""
    counted: list[torch.Tensor | None] = []

    def note(model: Any, input_ids: torch.Tensor, **told: Any) -> torch.Tensor:
        counted.append(told.get("position_ids"))
        return input_ids

    generate(half, inputs, features, custom_generate=note, max_new_tokens=1, min_new_tokens=0)
    if len(counted) != 1 or counted[0] is None:
        raise UnsupportedCacheError("it is not told the positions of tokens")
    return counted[0]


def _refuse(model: Any, endings: Any, told: Mapping[str, Any]) -> None:
    """Raise CannotSeat for what cannot be done row by row."""
    if told.get("position_ids") is None and not model.config.is_encoder_decoder:
        raise UnsupportedCacheError("it is not told the positions of tokens")
    mask = told.get("attention_mask")
    if mask is not None and (mask == 0).any():
        raise UnsupportedCacheError("some of its prompt is masked")
    if others := [type(each).__name__ for each in endings if type(each).__name__ not in ENDINGS]:
        raise UnsupportedCacheError(f"its captions may end by {others[0]}")


def _row(
    model: Any, ids: torch.Tensor, processors: Any, settings: Any, told: Any, output: Any
) -> PrefilledSequence:
    cache = output.past_key_values
    ends = settings._eos_token_tensor
    return PrefilledSequence(
        model=model,
        **(_encoded if model.config.is_encoder_decoder else _alone)(model, cache, ids, told),
        tokens=cache.get_seq_length(),
        types={name: _next_type(name, told[name]) for name in TYPES if told.get(name) is not None},
        along={name: told[name] for name in ALONG if name in told},
        ids=ids,
        processors=processors,
        ends=frozenset(() if ends is None else ends.flatten().tolist()),
        limit=settings.max_new_tokens,
        logits=output.logits[:, -1].to(copy=True, dtype=torch.float32),
    )


def _alone(model: Any, cache: Any, ids: torch.Tensor, told: Any) -> dict[str, Any]:
    """Return what hangs on there being no encoder."""
    position = told["position_ids"][..., -1:] + 1
    return {"cache": cache, "position": position, "positions_as": "position_ids"}


def _encoded(model: Any, cache: Any, ids: torch.Tensor, told: Any) -> dict[str, Any]:
    """Return the same where the prompt went to an encoder, and a caption was begun."""
    hidden, mask = told["encoder_outputs"][0], told.get("attention_mask")
    seen = torch.ones(hidden.shape[:2], dtype=torch.long, device=ids.device)
    source = EncoderOutput(
        cache=cache.cross_attention_cache, mask=seen if mask is None else mask, hidden=hidden
    )
    takes = "decoder_position_ids" in inspect.signature(model.forward).parameters
    return {
        "cache": cache.self_attention_cache,
        "source": source,
        "position": torch.full_like(ids[:, -1:], cache.get_seq_length()),
        "positions_as": "decoder_position_ids" if takes else "",
    }


def _next_type(name: str, types: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(types[:, -1:]) if name in OF_TEXT else types[:, -1:]


def select_token_ids(
    row: PrefilledSequence, ids: torch.Tensor, logits: torch.Tensor
) -> torch.Tensor:
    """Return the token that the row goes on with, of shape [1, 1]. `ids` are all before it."""
    return row.processors(ids, logits).argmax(-1, keepdim=True)  # type: ignore[no-any-return]


ONE = {"max_new_tokens": 1, "min_new_tokens": 0}
"""What is asked of a beginning, of which no word is taken."""


class SharedPrefix:
    """The KV cache of the prompt prefix that the last chunk's prompts share."""

    def __init__(self) -> None:
        self._of = ""
        self._ids: list[int] = []
        self._cache: Any = None

    def read(
        self, half: Any, of: str, inputs: Mapping[str, Any], features: Features, **options: Any
    ) -> PrefilledSequence:
        """Return a row, its prompt read; `of` names the chunk. Raises CannotSeat for a half or a
        prompt that has nothing to share."""
        length = _shared_tokens(half, inputs)
        # Of a beginning alone, or of an end, some families would count other positions.
        positions = positions_of(half, inputs, features)
        ids = inputs["input_ids"][0, :length].tolist()
        if (of, ids) != (self._of, self._ids):
            self.forget()
            # What chooses words has nothing to choose of a beginning.
            reading = {n: v for n, v in options.items() if n == "prefill_chunk_size"}
            begun = {**_beginning(inputs, length), "position_ids": positions[..., :length]}
            self._cache = prefill_row(half, begun, features, **ONE, **reading).cache
            self._of, self._ids = of, ids
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
    wanted = torch.tensor(sorted(placeholder_ids(half.config)), device=ids.device)
    standing = torch.isin(ids, wanted).nonzero().flatten().tolist()
    if not standing or standing[-1] + 1 >= len(ids):
        raise UnsupportedCacheError("its prompts do not begin with their pictures")
    return int(standing[-1]) + 1


def _beginning(inputs: Mapping[str, Any], length: int) -> dict[str, Any]:
    """Return the inputs of so many tokens; what is not of tokens, such as grids, stays whole."""
    shape = inputs["input_ids"].shape
    return {
        name: value[:, :length] if getattr(value, "shape", ())[:2] == shape else value
        for name, value in inputs.items()
    }
