"""Prefills one prompt, alone and without padding, and restricts the attention of a decode step to
the slots.

`generate` prepares everything that the model family needs: positions, masks, features, logits
processors. It then calls `park` in place of its own decoding loop. `park` runs the prefill and
keeps its result.

A decode step computes more rows than there are slots if memory holds fewer sequences than the step
has rows. The linear layers compute all rows, so that rounding does not depend on the slots. Keys
and values exist for the slots only, so attention is computed over the slots alone:

1. While a prompt is prefilled, `noted_keys` notes which tensors reach transformers' SDPA function.
2. A cache layer whose keys are among them is direct: nothing comes between the cache and attention.
3. In a step, a direct layer returns the keys and values of the slots, and `attention_of_slots`
   computes attention for these rows. The output of the other rows is zero.
4. The keys of any other layer are copied to all rows in each step.
"""

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from transformers import Cache, LogitsProcessorList, masking_utils
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from stages.decode.engines.inflight.cache_layers import UnsupportedCacheError
from stages.models.halves.features import Features, moved, placeholder_ids
from stages.models.halves.generate import generate
from stages.models.halves.split_route import AUDIO, MODALITIES, choose_route
from stages.models.protocols import Half, Tree

SDPA = "sdpa"
"""Name of the attention that takes part; others copy."""
MASK_CHECKS = ("_ignore_causal_mask_sdpa", "_ignore_bidirectional_mask_sdpa")
"""Functions that read a mask on the host in order to leave out one that hides nothing."""


@contextmanager
def noted_keys() -> Iterator[list[StorageWeakRef]]:
    """Yield a list to which attention adds the storage of all keys that it receives."""
    seen: list[StorageWeakRef] = []

    def attend(module: Any, query: Any, key: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(StorageWeakRef(key.untyped_storage()))
        return sdpa_attention_forward(module, query, key, *args, **kwargs)

    with _attention(attend):
        yield seen


def direct_layers(cache: Cache, seen: Sequence[StorageWeakRef]) -> tuple[bool, ...]:
    """Return for each layer of a cache whether attention received its keys; nothing for a cache
    without layers, which has no slots."""
    noted = {ref.cdata for ref in seen}  # a weak reference keeps its number from being used again
    keys = (getattr(layer, "keys", None) for layer in getattr(cache, "layers", ()))
    return tuple(
        torch.is_tensor(key) and StorageWeakRef(key.untyped_storage()).cdata in noted
        for key in keys
    )


@contextmanager
def attention_of_slots() -> Iterator[None]:
    """Compute attention for the rows that have keys. Masks are always made: leaving one out would
    wait for the device, and would make a row depend on its neighbours."""
    before = {name: getattr(masking_utils, name) for name in MASK_CHECKS}
    for name in MASK_CHECKS:
        setattr(masking_utils, name, lambda *_, **__: False)
    try:
        with _attention(_attend_used):
            yield
    finally:
        for name, function in before.items():
            setattr(masking_utils, name, function)


@contextmanager
def _attention(function: Any) -> Iterator[None]:
    ALL_ATTENTION_FUNCTIONS[SDPA] = function
    try:
        yield
    finally:
        del ALL_ATTENTION_FUNCTIONS[SDPA]


def _attend_used(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Compute attention for as many rows as have keys, and zeros for the others."""
    rows, used = len(query), len(key)
    if used == rows:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    for name, given in kwargs.items():
        kwargs[name] = given[:used] if torch.is_tensor(given) and len(given) == rows else given
    if attention_mask is not None and len(attention_mask) == rows:
        attention_mask = attention_mask[:used]
    output, _ = sdpa_attention_forward(module, query[:used], key, value, attention_mask, **kwargs)
    return torch.cat([output, output.new_zeros(rows - used, *output.shape[1:])]), None


TOKEN_TYPES = ("token_type_ids", "mm_token_type_ids", "moe_mm_token_type_ids")
"""Names of the inputs that give the type of each token."""
TEXT_TYPES = ("mm_token_type_ids", "moe_mm_token_type_ids")
"""Those of them that are 0 (text) for generated tokens; others repeat the previous token's type."""
EXTRA_INPUTS = ("use_cache", "logits_to_keep")
"""Other inputs that `generate` passes at every token."""
PLACEHOLDERS = "get_placeholder_mask"
"""Method with which models of transformers find and count their placeholders."""
COUNTED = {"input_ids", "inputs_embeds", "image_features", "video_features"}
"""Its arguments where it reads no numbers but ids; of the others it takes the shape."""
ENDINGS = ("MaxLengthCriteria", "EosTokenCriteria")
"""The supported stopping criteria."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderOutput:
    """The encoder output of one prompt."""

    cache: Any
    """Keys and values of the cross-attention layers."""
    mask: torch.Tensor
    """Mask of the encoder's tokens, of shape [1, tokens]."""
    hidden: torch.Tensor
    """The encoder's hidden states, of shape [1, tokens, width]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PrefilledSequence:
    """A sequence after prefill."""

    model: Half
    """Module that computes the next token: the half, or the decoder inside it."""
    cache: Any
    """KV cache of the prompt, or of the forced beginning of a caption."""
    tokens: int
    """Number of tokens in the cache."""
    position: torch.Tensor
    """Position of the next token, of shape [..., 1, 1]."""
    positions_name: str
    """Name of the model's argument for positions; empty: the model counts them itself."""
    token_types: Mapping[str, torch.Tensor]
    """Type of the next token, of shape [1, 1], by argument name."""
    extra_inputs: Mapping[str, Any]
    """Other arguments of the model at every token."""
    ids: torch.Tensor
    """The prompt as logits processors see it, of shape [1, tokens]."""
    processors: LogitsProcessorList
    """The logits processors, in order."""
    eos_token_ids: frozenset[int]
    """Tokens that end the caption."""
    max_new_tokens: int
    """Maximum number of tokens of the caption."""
    logits: torch.Tensor
    """The logits of the first token, of shape [1, vocabulary]."""
    direct: tuple[bool, ...] = ()
    """Whether attention gets the keys of each cache layer unchanged."""
    encoder_output: EncoderOutput | None = None
    """The encoder's output, for a half with an encoder for prompts."""
    stopped: Callable[[Sequence[int]], bool] | None = None
    """Function that checks the new tokens for a stop string; None: no check."""

    @property
    def prompt_tokens(self) -> int:
        """Return the number of prompt tokens, image tokens included."""
        return int(self.encoder_output.mask.sum()) if self.encoder_output else self.tokens


def prefill_row(
    half: Half, inputs: Mapping[str, Tree], features: Mapping[str, Tree], **options: Any
) -> PrefilledSequence:
    """Prefill one prompt. Raises UnsupportedCacheError if `generate` works differently."""
    read: list[PrefilledSequence] = []

    # These argument names separate what `generate` uses itself from what it passes to the model.
    def park(
        model: Half,
        input_ids: torch.Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: Any,
        generation_config: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        _refuse(model, stopping_criteria, kwargs)
        device = model.device
        ids: torch.Tensor = moved(input_ids, device)
        kwargs = {name: moved(value, device) for name, value in kwargs.items()}
        with noted_keys() as keys, _placeholders_on_host(model, input_ids):
            output = model._prefill(ids, generation_config, kwargs)
        for processor in logits_processor:
            vars(processor).update({n: moved(v, device) for n, v in vars(processor).items()})
        sequence = _prefilled(model, ids, logits_processor, generation_config, kwargs, output)
        read.append(replace(sequence, direct=direct_layers(sequence.cache, keys)))
        return ids

    generate(half, inputs, features, on_host=True, custom_generate=park, **options)
    if len(read) != 1:
        raise UnsupportedCacheError("its generate has its own prefill")
    return read[0]


@contextmanager
def _placeholders_on_host(model: Half, ids: torch.Tensor) -> Iterator[None]:
    """Make the models inside a model find and count the placeholders of a prompt in `ids`, which
    are in host memory. On the device, each check would wait for the work that is queued there."""

    def masks(own: Any, input_ids: Any, inputs_embeds: Any, *features: Any, **named: Any) -> Any:
        is_whole = input_ids is not None and input_ids.shape == ids.shape
        if not is_whole or inputs_embeds is None or ids.device == inputs_embeds.device:
            return own(input_ids, inputs_embeds, *features, **named)
        as_shape = torch.empty((), dtype=inputs_embeds.dtype).expand(inputs_embeds.shape)
        return moved(own(ids, as_shape, *features, **named), inputs_embeds.device)

    owners = []
    for module in model.modules():
        if hasattr(type(module), PLACEHOLDERS):  # of the class: a module looks long for its own
            own = getattr(module, PLACEHOLDERS)
            if inspect.signature(own).parameters.keys() <= COUNTED:
                vars(module)[PLACEHOLDERS] = partial(masks, own)
                owners.append(module)
    try:
        yield
    finally:
        for module in owners:
            del vars(module)[PLACEHOLDERS]


def positions_of(
    half: Half, inputs: Mapping[str, Tree], features: Mapping[str, Tree]
) -> torch.Tensor:
    """Return the positions of a prompt's tokens as `generate` counts them, of shape [..., 1,
    tokens]. Raises UnsupportedCacheError if `generate` of the half does not count them."""
    seen_positions: list[torch.Tensor | None] = []

    def note(model: Half, input_ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        seen_positions.append(kwargs.get("position_ids"))
        return input_ids

    if AUDIO in features:  # no pass asks for it
        seen = {modality: record for modality, record in features.items() if modality != AUDIO}
        features = Features(seen, already_read=True)
    options = {"custom_generate": note, **ONE_TOKEN}
    generate(half, inputs, features, on_host=True, **options)
    if len(seen_positions) != 1 or seen_positions[0] is None:
        raise UnsupportedCacheError("generate passes it no token positions")
    return seen_positions[0]


def _refuse(model: Half, stopping_criteria: Any, kwargs: Mapping[str, Any]) -> None:
    """Raise UnsupportedCacheError for anything that cannot be done sequence by sequence."""
    if kwargs.get("position_ids") is None and not model.config.is_encoder_decoder:
        raise UnsupportedCacheError("generate passes it no token positions")
    mask = kwargs.get("attention_mask")
    if mask is not None and (mask == 0).any():
        raise UnsupportedCacheError("its prompt is partly masked")
    names = (type(criterion).__name__ for criterion in stopping_criteria)
    if others := [name for name in names if name not in ENDINGS]:
        raise UnsupportedCacheError(f"unsupported stopping criterion {others[0]}")


def _prefilled(
    model: Half,
    ids: torch.Tensor,
    processors: LogitsProcessorList,
    generation_config: Any,
    kwargs: Any,
    output: Any,
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


def _decoder_fields(model: Half, cache: Any, ids: torch.Tensor, kwargs: Any) -> dict[str, Any]:
    """Return the fields that are specific to decoder-only models."""
    position = kwargs["position_ids"][..., -1:] + 1
    return {"cache": cache, "position": position, "positions_name": "position_ids"}


def _encoder_fields(model: Half, cache: Any, ids: torch.Tensor, kwargs: Any) -> dict[str, Any]:
    """Return the same fields for an encoder-decoder, whose decoder has prefilled the beginning."""
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


ONE_TOKEN = {"max_new_tokens": 1, "min_new_tokens": 0}
"""Settings for the prefill of a prefix, whose generated token is discarded."""


class SharedPrefix:
    """The KV cache of the prompt prefix that the last chunk's prompts share."""

    def __init__(self) -> None:
        self._of = ""
        self._ids: list[int] = []
        self._cache: Cache | None = None

    def prefill_from_prefix(
        self,
        half: Half,
        chunk_key: str,
        inputs: Mapping[str, Any],
        features: Features,
        **options: Any,
    ) -> PrefilledSequence:
        """Prefill a prompt; `chunk_key` names the chunk. Raises UnsupportedCacheError for a half or
        a prompt without a shared prefix."""
        length = _shared_tokens(half, inputs)
        # For a prefix or a suffix alone, some families would count other positions.
        positions = positions_of(half, inputs, features)
        ids = inputs["input_ids"][0, :length].tolist()
        if (chunk_key, ids) != (self._of, self._ids):
            self.forget()
            # A prefix selects no tokens, so it needs no logits processors.
            prefill_kwargs = {n: v for n, v in options.items() if n == "prefill_chunk_size"}
            prefix_inputs = {**_beginning(inputs, length), "position_ids": positions[..., :length]}
            self._cache = prefill_row(
                half, prefix_inputs, features, **ONE_TOKEN, **prefill_kwargs
            ).cache
            self._of, self._ids = chunk_key, ids
        cache = copy.deepcopy(self._cache)
        rest = Features({}, features.needs, already_read=True)
        with_positions = {**inputs, "position_ids": positions}
        return prefill_row(half, with_positions, rest, past_key_values=cache, **options)

    def forget(self) -> None:
        """Free the cached prefix."""
        self._of, self._ids, self._cache = "", [], None


def _shared_tokens(half: Half, inputs: Mapping[str, Any]) -> int:
    """Return the number of tokens up to and including the last placeholder of any kind."""
    if half.config.is_encoder_decoder:
        raise UnsupportedCacheError("its prompt goes to an encoder")
    if choose_route(half).route != "protocol":
        raise UnsupportedCacheError("its image features are not passed to generate")
    ids = inputs["input_ids"][0]
    kinds = (*MODALITIES, AUDIO)
    placeholders = torch.tensor(sorted(placeholder_ids(half.config, kinds)), device=ids.device)
    positions_of_media = torch.isin(ids, placeholders).nonzero().flatten().tolist()
    if not positions_of_media or positions_of_media[-1] + 1 >= len(ids):
        raise UnsupportedCacheError("its prompts do not start with their images")
    return int(positions_of_media[-1]) + 1


def _beginning(inputs: Mapping[str, Any], length: int) -> dict[str, Any]:
    """Return the inputs of the first `length` tokens; those per image, as grids, stay whole."""
    shape = inputs["input_ids"].shape
    return {
        name: value[:, :length] if getattr(value, "shape", ())[:2] == shape else value
        for name, value in inputs.items()
    }
