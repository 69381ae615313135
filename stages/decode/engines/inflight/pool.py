"""The slot pool: decodes one token for every slot in a single step.

The pool's shape is fixed, so every step is the same computation whatever it holds. Empty slots are
computed too, and their output is ignored. For most models a sequence's output then depends only on
its own tokens; `trial` checks this for the model at hand.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from transformers import EncoderDecoderCache

from stages.decode.engines.inflight.compiled import mark_static
from stages.decode.engines.inflight.pool_shape import PoolShape
from stages.decode.engines.inflight.prefill import PrefilledSequence
from stages.decode.engines.inflight.slot_cache import (
    AlignedSlotCache,
    CrossAttentionCache,
    SlotCache,
)


class SlotPool:
    """The slots of one half, and the next input token of each."""

    def __init__(self, like: PrefilledSequence, shape: PoolShape) -> None:
        """Make room for rows like this one. Raises CannotSeat, and what an allocator raises."""
        self.shape = shape
        self.model, self._step = like.model, like.step
        self._along = dict(like.along)
        self._positions_as = like.positions_as
        with torch.inference_mode():
            self._make(like)

    def _make(self, like: PrefilledSequence) -> None:
        rows, device = self.shape.rows, like.position.device
        self._at = torch.zeros(rows, dtype=torch.long, device=device)
        self._live = torch.zeros(rows, dtype=torch.long, device=device)
        self._position = like.position.new_zeros(*like.position.shape[:-2], rows, 1)
        self._last = torch.zeros(rows, 1, dtype=like.ids.dtype, device=device)
        self._types = {n: value.new_zeros(rows, 1) for n, value in like.types.items()}
        room = AlignedSlotCache if self.shape.aligned else SlotCache
        self._room: AlignedSlotCache | SlotCache = room(like, self.shape, self._at)
        self._sources = CrossAttentionCache(like, self.shape) if like.source is not None else None
        if self._step is not None:
            mark_static(self._room.cache)

    def put(self, slot: int, row: PrefilledSequence, token: torch.Tensor) -> None:
        """Let a row go on in this slot with `token`, its first, of shape [1, 1]."""
        self.model, self._step = row.model, row.step
        with torch.inference_mode():
            self._room.put(slot, row)
            if self._sources is not None:
                self._sources.put(slot, row)
            for name, value in row.types.items():
                self._types[name][slot] = value[0]
            self._position[..., slot : slot + 1, :] = row.position
            self._last[slot] = token[0]
            self._at[slot], self._live[slot] = row.tokens, 1

    def clear(self, slot: int) -> None:
        """Empty a slot, whose row has ended."""
        with torch.inference_mode():
            self._at[slot] = self._live[slot] = 0

    def step(self) -> torch.Tensor:
        """Return the logits of every row's next token, of shape [rows, words]: first those of the
        slots. Those of an empty one mean nothing."""
        with torch.inference_mode(), _row_by_row(self.model):
            given = self.model.prepare_inputs_for_generation(
                self._last,
                next_sequence_length=1,
                **self._remembered(),
                **self._types,
                **self._along,
            )
            if self._positions_as and given.get(self._positions_as) is None:
                given[self._positions_as] = self._position  # some would count them by the cache
            output = (self._step or self.model)(**given, return_dict=True)
            self._room.stepped()
            logits: torch.Tensor = output.logits[:, -1].float()
            return logits

    def _remembered(self) -> dict[str, Any]:
        """Return what the model is told of all that came before."""
        told = {self._positions_as: self._position} if self._positions_as else {}
        if self._sources is None:
            return told | {
                "past_key_values": self._room.cache,
                "attention_mask": self._room.mask(),
            }
        cache = EncoderDecoderCache(self._room.cache, self._sources.cache)
        seen = {"past_key_values": cache, "decoder_attention_mask": self._room.mask()}
        return told | seen | self._sources.given()

    def feed(self, tokens: torch.Tensor) -> None:
        """Let every row go on with its token, of shape [rows]."""
        with torch.inference_mode():
            self._last.copy_(tokens.unsqueeze(1))
            self._at += self._live
            self._at.clamp_(max=self.shape.columns - 1)
            self._position += self._live.unsqueeze(1)

    def resize(self, columns: int) -> None:
        """Make room for rows of so many tokens, in which those that are here fit. Raises what an
        allocator raises; then the pool is of no use any more."""
        self.shape = replace(self.shape, columns=columns)
        with torch.inference_mode():
            self._room.resize(columns)
            if self._step is not None:
                mark_static(self._room.cache)


@contextmanager
def _row_by_row(model: Any) -> Iterator[None]:
    """Have experts computed row by row, as `generate` does on a GPU after the prompt: products of
    all rows of an expert would be rounded by how many those are."""
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
