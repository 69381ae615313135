"""The slot pool: decodes one token for every slot in a single step.

The pool's shape is fixed, so every step is the same computation whatever it holds. Empty slots are
computed too, and their output is ignored. For most models a sequence's output then depends only on
its own tokens; `engine_check.py` verifies this for each model.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from transformers import EncoderDecoderCache
from transformers.cache_utils import LinearAttentionLayer

from stages.decode.engines.inflight.compiled import mark_static
from stages.decode.engines.inflight.pool_shape import PoolShape
from stages.decode.engines.inflight.prefill import PrefilledSequence
from stages.decode.engines.inflight.slot_cache import (
    AlignedSlotCache,
    CrossAttentionCache,
    SlotCache,
)
from stages.decode.engines.inflight.used_rows import attention_of_slots

if TYPE_CHECKING:
    from stages.decode.engines.inflight.gguf_pool import GgufPool
Pool: TypeAlias = "SlotPool | GgufPool"


def make_pool(template: PrefilledSequence, shape: PoolShape) -> Pool:
    """Return a pool for sequences like `template`, in torch or in llama.cpp. Raises
    UnsupportedCacheError and out-of-memory errors."""
    if getattr(template.cache, "decoder", None) is None:
        return SlotPool(template, shape)
    from stages.decode.engines.inflight.gguf_pool import GgufPool

    return GgufPool(template, shape)


class SlotPool:
    """The slots of one half, and the next input token of each."""

    def __init__(self, template: PrefilledSequence, shape: PoolShape) -> None:
        """Allocate a pool for sequences like `template`. Raises UnsupportedCacheError and
        out-of-memory errors."""
        self.shape = shape
        self.model, self._step = template.model, template.step
        self._extra_inputs = dict(template.extra_inputs)
        self._positions_name = template.positions_name
        with torch.inference_mode():
            self._make(template)

    def _make(self, template: PrefilledSequence) -> None:
        rows, device = self.shape.rows, template.position.device
        self._lengths = torch.zeros(rows, dtype=torch.long, device=device)
        self._active = torch.zeros(rows, dtype=torch.long, device=device)
        self._position = template.position.new_zeros(*template.position.shape[:-2], rows, 1)
        self._input_ids = torch.zeros(rows, 1, dtype=template.ids.dtype, device=device)
        types = template.token_types.items()
        self._token_types = {name: value.new_zeros(rows, 1) for name, value in types}
        kind = AlignedSlotCache if self.shape.aligned else SlotCache
        self._slot_cache: AlignedSlotCache | SlotCache = kind(template, self.shape, self._lengths)
        self._cross_attention: CrossAttentionCache | None = None
        if template.encoder_output is not None:
            self._cross_attention = CrossAttentionCache(template, self.shape)
        if self._step is not None:
            mark_static(self._slot_cache.cache)

    def put(self, slot: int, sequence: PrefilledSequence, token: torch.Tensor) -> None:
        """Put a prefilled sequence into a slot. `token` is its first token, of shape [1, 1]."""
        self.model, self._step = sequence.model, sequence.step
        with torch.inference_mode():
            self._slot_cache.put(slot, sequence)
            if self._cross_attention is not None:
                self._cross_attention.put(slot, sequence)
            for name, value in sequence.token_types.items():
                self._token_types[name][slot] = value[0]
            self._position[..., slot : slot + 1, :] = sequence.position
            self._input_ids[slot] = token[0]
            self._lengths[slot], self._active[slot] = sequence.tokens, 1

    def clear(self, slot: int) -> None:
        """Empty the slot of an ended sequence."""
        with torch.inference_mode():
            self._lengths[slot] = self._active[slot] = 0

    def step(self) -> torch.Tensor:
        """Return the logits of the next tokens, of shape [rows, vocabulary]. The first rows are the
        slots; those of empty slots are meaningless."""
        with torch.inference_mode(), attention_of_slots(), _experts_row_by_row(self.model):
            model_inputs = self.model.prepare_inputs_for_generation(
                self._input_ids,
                next_sequence_length=1,
                **self._past_inputs(),
                **self._token_types,
                **self._extra_inputs,
            )
            # Without positions, some models would derive them from the cache length.
            if self._positions_name and model_inputs.get(self._positions_name) is None:
                model_inputs[self._positions_name] = self._position
            output = (self._step or self.model)(**model_inputs, return_dict=True)
            self._slot_cache.after_step()
            logits: torch.Tensor = output.logits[:, -1].float()
            return logits

    def _past_inputs(self) -> dict[str, Any]:
        """Return the cache, masks and positions of all previous tokens."""
        positions = {self._positions_name: self._position} if self._positions_name else {}
        if self._cross_attention is None:
            return positions | {
                "past_key_values": self._slot_cache.cache,
                "attention_mask": self._slot_cache.mask(),
            }
        cache = EncoderDecoderCache(self._slot_cache.cache, self._cross_attention.cache)
        past = {"past_key_values": cache, "decoder_attention_mask": self._slot_cache.mask()}
        return positions | past | self._cross_attention.decoder_inputs()

    def set_tokens(self, tokens: torch.Tensor) -> None:
        """Append one token to every sequence. `tokens` is of shape [rows]."""
        with torch.inference_mode():
            self._input_ids.copy_(tokens.unsqueeze(1))
            self._lengths += self._active
            self._lengths.clamp_(max=self.shape.columns - 1)
            self._position += self._active.unsqueeze(1)

    def resize(self, columns: int) -> None:
        """Change the number of columns; the running sequences must fit. Raises out-of-memory
        errors, after which the pool is unusable."""
        self.shape = replace(self.shape, columns=columns)
        with torch.inference_mode():
            self._slot_cache.resize(columns)
            if self._step is not None:
                mark_static(self._slot_cache.cache)


def pays_for_rows(sequence: PrefilledSequence) -> bool:
    """Return whether each row of a step takes memory or time of its own, used or not: experts that
    are copied per row, recurrent states, or encoder states."""
    experts = sequence.model.get_experts_implementation().values()
    layers = getattr(sequence.cache, "layers", ())
    states = any(isinstance(layer, LinearAttentionLayer) for layer in layers)
    return "grouped_mm" in experts or states or sequence.encoder_output is not None


@contextmanager
def _experts_row_by_row(model: Any) -> Iterator[None]:
    """Compute mixture-of-experts layers row by row, as `generate` does on a GPU after the prompt.
    Rounding of grouped products depends on the number of rows per expert."""
    before = model.get_experts_implementation()
    after = {name: "batched_mm" if way == "grouped_mm" else way for name, way in before.items()}
    if after == before:
        yield
        return
    model.set_experts_implementation(after)
    try:
        yield
    finally:
        model.set_experts_implementation(before)
