"""The slots of a half whose decoder runs in llama.cpp."""

from dataclasses import replace

import numpy as np
import torch

from stages.decode.engines.inflight.pool_shape import PoolShape
from stages.decode.engines.inflight.prefill import PrefilledSequence
from stages.models.gguf import ROWS
from stages.models.gguf.half import GgufCache, GgufDecoder


class GgufPool:
    """The rows of llama.cpp's decode steps, and the next token of each. It has the interface of
    `SlotPool`. A new pool takes the rows over from the one before."""

    def __init__(self, template: PrefilledSequence, shape: PoolShape) -> None:
        """Take over the rows for sequences like `template`. Room is made as they grow: what is not
        used would be cleared memory, which counts."""
        self._decoder: GgufDecoder = template.cache.decoder
        self._tokens = [0] * ROWS
        self._counts = [0] * ROWS
        shape_of_one = _next_position(template).shape[:-2]
        self._positions = torch.zeros(*shape_of_one, ROWS, 1, dtype=torch.long)
        self._active: set[int] = set()
        for row in range(ROWS):
            self._decoder.context.clear(row)
        self.shape = shape

    def put(self, slot: int, sequence: PrefilledSequence, token: torch.Tensor) -> None:
        """Put a prefilled sequence into a slot. `token` is its first token, of shape [1, 1]."""
        cache: GgufCache = sequence.cache
        self._decoder.context.restore(slot, cache.state(), sequence.tokens)
        self._tokens[slot], self._counts[slot] = int(token), sequence.tokens
        self._positions[..., slot : slot + 1, :] = _next_position(sequence)
        self._active.add(slot)

    def clear(self, slot: int) -> None:
        self._active.discard(slot)
        self._counts[slot] = 0
        self._positions[..., slot, :] = 0
        self._decoder.context.clear(slot)

    def step(self) -> torch.Tensor:
        """Return the logits of the next tokens [rows, vocabulary]; meaningless for empty slots."""
        decoder = self._decoder
        decoder.context.reserve(1 + max(self._counts[row] for row in self._active))
        if any(decoder.context.lengths[row] != self._counts[row] for row in self._active):
            raise MemoryError("no room for a larger cache, so that running sequences were lost")
        rows = decoder.embedded(self._tokens)
        placed = decoder.positions(self._positions[..., 0], np.array(self._counts, np.int32))
        return torch.from_numpy(decoder.context.step(rows, placed, self._active))

    def set_tokens(self, tokens: torch.Tensor) -> None:
        self._tokens = tokens.tolist()
        for row in self._active:
            self._counts[row] += 1
            self._positions[..., row, :] += 1

    def resize(self, columns: int) -> None:
        """Note that sequences of so many tokens may run."""
        self.shape = replace(self.shape, columns=columns)


def _next_position(sequence: PrefilledSequence) -> torch.Tensor:
    position: torch.Tensor | None = sequence.cache.position
    return sequence.position if position is None else position
