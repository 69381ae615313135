"""A pool of slots: as many rows as it has room for make a token together, each at its own column.
Knows neither prompts nor captions.

Its shape is fixed, so that a step is the same computation whatever rows it is for: an empty slot
computes too, and nobody looks at what. Where a model computes by numbers alone, what a row says
then hangs on the row alone; whether it does, `trial` finds out.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from transformers import Cache

from stages.decode.engines.inflight.layers import CannotSeat, RingLayer, SlotLayer, seats
from stages.decode.engines.inflight.reading import ReadRow
from stages.decode.engines.inflight.shape import PoolShape


class Pool:
    """The slots of one half, and what each row in them goes on with."""

    def __init__(self, like: ReadRow, shape: PoolShape) -> None:
        """Make room for rows like this one. Raises CannotSeat, and what an allocator raises."""
        self.shape = shape
        self.model = like.model
        self.forward: Callable[..., Any] | None = None
        """What computes a step in place of the model itself, such as the model compiled."""
        self._along = dict(like.along)
        self._chunk = _chunk(like.model)
        with torch.inference_mode():
            self._make(like)

    def _make(self, like: ReadRow) -> None:
        rows, device = self.shape.rows, like.position.device
        self._at = torch.zeros(rows, dtype=torch.long, device=device)
        self._live = torch.zeros(rows, dtype=torch.long, device=device)
        self._position = like.position.new_zeros(*like.position.shape[:-2], rows, 1)
        self._last = torch.zeros(rows, 1, dtype=like.ids.dtype, device=device)
        self._types = {n: value.new_zeros(rows, 1) for n, value in like.types.items()}
        layers = [seats(layer, self.shape, self._at) for layer in like.cache.layers]
        if not any(isinstance(layer, SlotLayer) for layer in layers):
            raise CannotSeat("no layer of it says where a row is")
        self._cache = Cache(layers=layers)
        self._columns = torch.arange(self.shape.columns, device=device)
        self._rings = self._place_rings()

    def _place_rings(self) -> torch.Tensor | None:
        """Put the columns of windows behind the others in the mask; None where none goes round."""
        rings = [layer for layer in self._cache.layers if isinstance(layer, RingLayer)]
        if len({ring.sliding_window for ring in rings}) > 1:
            raise CannotSeat("its windows are of several widths")
        for ring in rings:
            ring.offset = 0
        if not rings or rings[0].columns == self.shape.columns:
            return None
        # Chunks are counted from the first column: these must all lie in one.
        self._gap = -self.shape.columns % (self._chunk or 1)
        for ring in rings:
            ring.offset = self.shape.columns + self._gap
        return torch.arange(rings[0].columns, device=self._at.device)

    def put(self, slot: int, row: ReadRow, token: torch.Tensor) -> None:
        """Let a row go on in this slot with `token`, its first, of shape [1, 1]."""
        self.model = row.model
        with torch.inference_mode():
            for mine, his in zip(self._cache.layers, row.cache.layers, strict=True):
                if hasattr(mine, "put"):
                    mine.put(slot, his, row.tokens)
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
                past_key_values=self._cache,
                attention_mask=self._mask(),
                position_ids=self._position,
                **self._types,
                **self._along,
            )
            if given.get("position_ids") is None:  # some would count them by the cache
                given["position_ids"] = self._position
            forward = self.model if self.forward is None else self.forward
            output = forward(**given, return_dict=True)
            logits: torch.Tensor = output.logits[:, -1].float()
            return logits

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
            for layer in self._cache.layers:
                if isinstance(layer, SlotLayer):
                    layer.resize(columns)
            self._columns = torch.arange(columns, device=self._at.device)
            self._rings = self._place_rings()

    def _mask(self) -> torch.Tensor:
        """Return which columns each row sees, of shape [rows, columns]; those of windows last."""
        at = self._at.unsqueeze(1)
        seen = self._columns <= at
        if self._rings is None:
            return seen.long()
        inside = self._rings <= (at % self._chunk if self._chunk else at)
        gap = seen.new_zeros(len(seen), self._gap)
        return torch.cat([seen, gap, inside], dim=1).long()


def _chunk(model: Any) -> int:
    """Return how many tokens see each other where a layer cuts them into chunks, else 0."""
    text = model.config.get_text_config(decoder=True)
    kinds = getattr(text, "layer_types", None)
    chunked = "chunked_attention" in kinds if kinds else not getattr(text, "sliding_window", None)
    return int(getattr(text, "attention_chunk_size", None) or 0) if chunked else 0


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
