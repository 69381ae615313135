"""What an encoder made of the prompts of the rows in a pool, for decoders that look at it at every
token. Knows neither prompts nor captions.

Each row's begins at the first column and ends where it does; the columns beyond are masked. There
is as much room as the longest has needed so far.
"""

import copy
from typing import Any

import torch
from transformers import Cache
from transformers.modeling_outputs import BaseModelOutput

from stages.decode.engines.inflight.layers import fill, widened
from stages.decode.engines.inflight.reading import ReadRow
from stages.decode.engines.inflight.shape import PoolShape, columns_for


class Sources:
    """Room for what was encoded for so many rows."""

    def __init__(self, like: ReadRow, shape: PoolShape) -> None:
        """Make room for rows like this one. Raises what an allocator raises."""
        assert like.source is not None
        rows = shape.rows
        self._hidden = like.source.hidden.new_zeros(1, 1, like.source.hidden.shape[-1])
        self._mask = like.source.mask.new_zeros(rows, 0)
        self.cache = Cache(layers=[copy.copy(layer) for layer in like.source.cache.layers])
        for layer in self.cache.layers:
            for name in KEPT:
                part = getattr(layer, name)
                setattr(layer, name, part.new_zeros(rows, part.shape[1], 0, part.shape[-1]))
        self._widen(shape.encoded)

    def put(self, slot: int, row: ReadRow) -> None:
        """Take over what was encoded for a row; nothing is left of who was here before."""
        assert row.source is not None
        tokens = row.source.mask.shape[-1]
        if tokens > self._mask.shape[-1]:
            self._widen(columns_for(tokens))
        self._mask[slot] = 0
        self._mask[slot, :tokens] = row.source.mask[0]
        for mine, his in zip(self.cache.layers, row.source.cache.layers, strict=True):
            for name in KEPT:
                fill(getattr(mine, name)[slot], getattr(his, name)[0])

    def given(self) -> dict[str, Any]:
        """Return what a decoder is told of it. The states themselves are in the cache already, and
        only as many are shown as there would be."""
        shape = (*self._mask.shape, self._hidden.shape[-1])
        hidden: Any = self._hidden.expand(shape)
        return {
            "attention_mask": self._mask,
            "encoder_outputs": BaseModelOutput(last_hidden_state=hidden),
        }

    def _widen(self, columns: int) -> None:
        more = columns - self._mask.shape[-1]
        # A row that is nobody's sees one column, of zeros: of none its numbers would be none.
        self._mask = torch.cat([self._mask, self._mask.new_zeros(len(self._mask), more)], dim=1)
        self._mask[:, :1] = 1
        for layer in self.cache.layers:
            for name in KEPT:
                setattr(layer, name, widened(getattr(layer, name), columns))


KEPT = ("keys", "values")
"""Names under which a layer keeps what it makes of a source."""
