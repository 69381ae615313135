"""What the rows of a pool are remembered in, each at columns of its own. Knows neither prompts nor
captions.

A row begins at the first column and writes at the next one, wherever the others are. So nothing
is moved, and a step goes through the same columns whatever rows there are.
"""

from typing import Any

import torch
from transformers import Cache

from stages.decode.engines.inflight.layers import CannotSeat, RingLayer, SlotLayer
from stages.decode.engines.inflight.reading import ReadRow
from stages.decode.engines.inflight.seats import seats
from stages.decode.engines.inflight.shape import PoolShape


class Slots:
    """Room for as many rows as there are slots."""

    def __init__(self, like: ReadRow, shape: PoolShape, at: torch.Tensor) -> None:
        """Make room for rows like this one; `at` is the pool's own: the tokens that are remembered
        of each row. Raises CannotSeat, and what an allocator raises."""
        self._at = at
        self._chunk = _chunk(like.model)
        layers = [seats(layer, shape, at) for layer in like.cache.layers]
        if not any(isinstance(layer, SlotLayer) for layer in layers):
            raise CannotSeat("no layer of it says where a row is")
        self.cache = Cache(layers=layers)
        self._widen(shape.columns)

    def put(self, slot: int, row: ReadRow) -> None:
        """Take over what a row has read; nothing is left of who was here before."""
        for mine, his in zip(self.cache.layers, row.cache.layers, strict=True):
            if hasattr(mine, "put"):
                mine.put(slot, his, row.tokens)

    def mask(self) -> torch.Tensor:
        """Return which columns each row sees, of shape [rows, columns]; those of windows last."""
        at = self._at.unsqueeze(1)
        seen = self._columns <= at
        if self._rings is None:
            return seen.long()
        inside = self._rings <= (at % self._chunk if self._chunk else at)
        gap = seen.new_zeros(len(seen), self._gap)
        return torch.cat([seen, gap, inside], dim=1).long()

    def stepped(self) -> None:
        """Do nothing: a token was written where it stays."""

    def resize(self, columns: int) -> None:
        """Make room for rows of so many tokens, in which those that are here fit."""
        for layer in self.cache.layers:
            if isinstance(layer, SlotLayer):
                layer.resize(columns)
        self._widen(columns)

    def _widen(self, columns: int) -> None:
        """Put the columns of windows behind the others in the mask, where any goes round."""
        self._columns = torch.arange(columns, device=self._at.device)
        self._rings: torch.Tensor | None = None
        rings = [layer for layer in self.cache.layers if isinstance(layer, RingLayer)]
        if len({ring.sliding_window for ring in rings}) > 1:
            raise CannotSeat("its windows are of several widths")
        for ring in rings:
            ring.offset = 0
        if not rings or rings[0].columns == columns:
            return
        # Chunks are counted from the first column: these must all lie in one.
        self._gap = -columns % (self._chunk or 1)
        for ring in rings:
            ring.offset = columns + self._gap
        self._rings = torch.arange(rings[0].columns, device=self._at.device)


def _chunk(model: Any) -> int:
    """Return how many tokens see each other where a layer cuts them into chunks, else 0."""
    text = model.config.get_text_config(decoder=True)
    kinds = getattr(text, "layer_types", None)
    chunked = "chunked_attention" in kinds if kinds else not getattr(text, "sliding_window", None)
    return int(getattr(text, "attention_chunk_size", None) or 0) if chunked else 0
