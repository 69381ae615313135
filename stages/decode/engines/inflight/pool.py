"""The slot pool: keeps the KV cache of every slot, and decodes one token for every slot in a step.

The pool's shape is fixed, so every step is the same computation whatever it holds. Empty slots are
computed too, and their output is ignored. For most models a sequence's output then depends only on
its own tokens; `engine.py` verifies this for each model.

The slot caches are the KV-cache storage of the pool, in tensors of a fixed shape. How they work:

1. A prefilled sequence is the template: the layers of its cache give the types and widths.
2. The slot cache replaces each cache layer of transformers by its slot version, found by
   class. If no slot version exists, the half cannot run in slots, and an error says why.
3. Inserting a sequence copies its prefilled keys and values into one slot. Nothing of the slot's
   previous sequence stays visible.
4. Every sequence starts at the first column and writes each token at its own next column. No data
   moves, so a step computes the same columns whatever sequences run.
5. The mask shows each row the columns up to its own position. Sliding windows are rings of fewer
   columns; the mask lists these behind the full ones.
6. The cross-attention cache holds encoder states and their mask per slot. An empty slot sees one
   column of zeros, because attention over no column gives NaN.
7. Resizing changes the number of columns and keeps the running sequences.
8. A step binds no tensor anew: it writes into those that are there, so it can be recorded.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from transformers import Cache, EncoderDecoderCache
from transformers.cache_utils import (
    DummyLayer,
    DynamicIndexedLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionLayer,
)
from transformers.modeling_outputs import BaseModelOutput

from stages.decode.engines.inflight.cache_layers import (
    IndexedLayer,
    RingLayer,
    SlotLayer,
    StateAndSlotLayer,
    StateLayer,
    UnsupportedCacheError,
    fill,
    widened,
)
from stages.decode.engines.inflight.pool_shape import PoolShape, columns_for
from stages.decode.engines.inflight.prefill import PrefilledSequence, attention_of_slots
from stages.models.protocols import Half

if TYPE_CHECKING:
    from stages.decode.engines.inflight.gguf_pool import GgufPool


SLOT_LAYERS: Mapping[type[Any], Callable[[Any, PoolShape, torch.Tensor], Any]] = {
    DynamicLayer: SlotLayer,
    DynamicSlidingWindowLayer: RingLayer,
    DynamicIndexedLayer: IndexedLayer,
    LinearAttentionLayer: lambda template, shape, lengths: StateLayer(template, shape),
    LinearAttentionAndFullAttentionLayer: StateAndSlotLayer,
}
"""Class of a cache layer of transformers → its slot version."""


def slot_layer_for(layer: Any, shape: PoolShape, lengths: torch.Tensor) -> Any:
    """Return the slot version of a cache layer with one sequence. Raises UnsupportedCacheError."""
    if isinstance(layer, DummyLayer):
        return layer
    if type(layer) in SLOT_LAYERS:
        return SLOT_LAYERS[type(layer)](layer, shape, lengths)
    if isinstance(layer, DynamicLayer) and type(layer).update is DynamicLayer.update:
        return IndexedLayer(layer, shape, lengths)
    raise UnsupportedCacheError(f"no slot version of the cache layer {type(layer).__name__}")


class SlotCache:
    """The KV cache of all slots."""

    def __init__(
        self, template: PrefilledSequence, shape: PoolShape, lengths: torch.Tensor
    ) -> None:
        """Allocate slots for sequences like `template`. `lengths` is the pool's own tensor: the
        number of cached tokens per row. Raises UnsupportedCacheError and out-of-memory errors."""
        self._lengths = lengths
        self._chunk = _chunk(template.model)
        layers = [slot_layer_for(layer, shape, lengths) for layer in template.cache.layers]
        if not any(isinstance(layer, SlotLayer) for layer in layers):
            raise UnsupportedCacheError("no cache layer tracks the position of a sequence")
        for layer, direct in zip(layers, template.direct, strict=True):
            if isinstance(layer, SlotLayer):
                layer.direct = direct
        self.cache = Cache(layers=layers)
        self._widen(shape.columns)

    def put(self, slot: int, sequence: PrefilledSequence) -> None:
        """Copy a prefilled sequence into a slot and overwrite what the slot held before."""
        for target, source in zip(self.cache.layers, sequence.cache.layers, strict=True):
            if hasattr(target, "put"):
                target.put(slot, source, sequence.tokens)

    def mask(self) -> torch.Tensor:
        """Return the columns that each row sees [rows, columns], those of sliding windows last."""
        lengths = self._lengths.unsqueeze(1)
        seen = self._columns <= lengths
        if self._rings is None:
            return seen.long()
        inside = self._rings <= (lengths % self._chunk if self._chunk else lengths)
        gap = seen.new_zeros(len(seen), self._gap)
        return torch.cat([seen, gap, inside], dim=1).long()

    def after_step(self) -> None:
        """Do nothing: written tokens stay in their columns."""

    def resize(self, columns: int) -> None:
        """Change the number of columns; the running sequences must fit and are kept."""
        for layer in self.cache.layers:
            if isinstance(layer, SlotLayer):
                layer.resize(columns)
        self._widen(columns)

    def _widen(self, columns: int) -> None:
        """Update the mask for `columns`; columns of ring layers follow behind the others."""
        self._columns = torch.arange(columns, device=self._lengths.device)
        self._rings: torch.Tensor | None = None
        rings = [layer for layer in self.cache.layers if isinstance(layer, RingLayer)]
        if len({ring.sliding_window for ring in rings}) > 1:
            raise UnsupportedCacheError("its sliding windows have different widths")
        for ring in rings:
            ring.offset = 0
        if not rings or rings[0].columns == columns:
            return
        # Chunks of chunked attention are counted from the first column, and these columns must all
        # lie in one chunk.
        self._gap = -columns % (self._chunk or 1)
        for ring in rings:
            ring.offset = columns + self._gap
        self._rings = torch.arange(rings[0].columns, device=self._lengths.device)


def _chunk(model: Half) -> int:
    """Return the chunk size of chunked attention in tokens, or 0 without it."""
    text = model.config.get_text_config(decoder=True)
    kinds = getattr(text, "layer_types", None)
    chunked = "chunked_attention" in kinds if kinds else not getattr(text, "sliding_window", None)
    return int(getattr(text, "attention_chunk_size", None) or 0) if chunked else 0


class CrossAttentionCache:
    """The encoder states of all slots, for cross-attention."""

    def __init__(self, template: PrefilledSequence, shape: PoolShape) -> None:
        """Allocate encoder states for sequences like `template`. Raises out-of-memory errors."""
        states = template.encoder_output
        assert states is not None
        rows = shape.rows
        self._hidden = states.hidden.new_zeros(1, 1, states.hidden.shape[-1])
        self._mask = states.mask.new_zeros(rows, 0)
        self.cache = Cache(layers=[copy.copy(layer) for layer in states.cache.layers])
        for layer in self.cache.layers:
            for name in KEY_VALUE:
                part = getattr(layer, name)
                setattr(layer, name, part.new_zeros(rows, part.shape[1], 0, part.shape[-1]))
        self._widen(shape.encoded)

    def put(self, slot: int, sequence: PrefilledSequence) -> None:
        """Copy a sequence's encoder states into a slot and clear what it held before."""
        states = sequence.encoder_output
        assert states is not None
        tokens = states.mask.shape[-1]
        if tokens > self._mask.shape[-1]:
            self._widen(columns_for(tokens))
        self._mask[slot] = 0
        self._mask[slot, :tokens] = states.mask[0]
        for target, source in zip(self.cache.layers, states.cache.layers, strict=True):
            for name in KEY_VALUE:
                fill(getattr(target, name)[slot], getattr(source, name)[0])

    def decoder_inputs(self) -> dict[str, Any]:
        """Return the decoder's inputs. The states themselves are in the cache; a placeholder shows
        only their shape."""
        shape = (*self._mask.shape, self._hidden.shape[-1])
        hidden: Any = self._hidden.expand(shape)
        return {
            "attention_mask": self._mask,
            "encoder_outputs": BaseModelOutput(last_hidden_state=hidden),
        }

    def _widen(self, columns: int) -> None:
        more = columns - self._mask.shape[-1]
        # An unused row sees one column of zeros: attention over no column gives NaN.
        self._mask = torch.cat([self._mask, self._mask.new_zeros(len(self._mask), more)], dim=1)
        self._mask[:, :1] = 1
        for layer in self.cache.layers:
            for name in KEY_VALUE:
                setattr(layer, name, widened(getattr(layer, name), columns))


KEY_VALUE = ("keys", "values")
"""Attributes in which a layer keeps its keys and values of the encoder states."""


Pool: TypeAlias = "SlotPool | GgufPool"


class SlotPool:
    """The slots of one half, and the next input token of each."""

    @torch.inference_mode()
    def __init__(self, template: PrefilledSequence, shape: PoolShape) -> None:
        """Allocate a pool as `SlotCache` does."""
        self.shape = shape
        self.model = template.model
        self._extra_inputs = dict(template.extra_inputs)
        self._positions_name = template.positions_name
        rows, device = self.shape.rows, template.position.device
        self._lengths = torch.zeros(rows, dtype=torch.long, device=device)
        self._active = torch.zeros(rows, dtype=torch.long, device=device)
        self._position = template.position.new_zeros(*template.position.shape[:-2], rows, 1)
        self._input_ids = torch.zeros(rows, 1, dtype=template.ids.dtype, device=device)
        types = template.token_types.items()
        self._token_types = {name: value.new_zeros(rows, 1) for name, value in types}
        self._slot_cache = SlotCache(template, self.shape, self._lengths)
        self._cross_attention: CrossAttentionCache | None = None
        if template.encoder_output is not None:
            self._cross_attention = CrossAttentionCache(template, self.shape)

    @torch.inference_mode()
    def put(self, slot: int, sequence: PrefilledSequence, token: torch.Tensor) -> None:
        """Put a prefilled sequence into a slot. `token` is its first token, of shape [1, 1]."""
        self.model = sequence.model
        self._slot_cache.put(slot, sequence)
        if self._cross_attention is not None:
            self._cross_attention.put(slot, sequence)
        for name, value in sequence.token_types.items():
            self._token_types[name][slot] = value[0]
        self._position[..., slot : slot + 1, :] = sequence.position
        self._input_ids[slot] = token[0]
        self._lengths[slot], self._active[slot] = sequence.tokens, 1

    @torch.inference_mode()
    def clear(self, slot: int) -> None:
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
            output = self.model(**model_inputs, return_dict=True)
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

    @torch.inference_mode()
    def set_tokens(self, tokens: torch.Tensor) -> None:
        """Append one token to every sequence. `tokens` is of shape [rows]."""
        self._input_ids.copy_(tokens.unsqueeze(1))
        self._lengths += self._active
        self._lengths.clamp_(max=self.shape.columns - 1)
        self._position += self._active.unsqueeze(1)

    @torch.inference_mode()
    def resize(self, columns: int) -> None:
        """Change the number of columns; the running sequences must fit. Raises out-of-memory
        errors, after which the pool is unusable."""
        self.shape = replace(self.shape, columns=columns)
        self._slot_cache.resize(columns)


def pays_for_rows(sequence: PrefilledSequence) -> bool:
    """Return whether each row of a step takes memory or time of its own, used or not: experts that
    are copied per row, recurrent states, or encoder states."""
    experts = sequence.model.get_experts_implementation().values()
    layers = getattr(sequence.cache, "layers", ())
    states = any(isinstance(layer, LinearAttentionLayer) for layer in layers)
    return "grouped_mm" in experts or states or sequence.encoder_output is not None


@contextmanager
def _experts_row_by_row(model: Half) -> Iterator[None]:
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
