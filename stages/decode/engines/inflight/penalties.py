"""Applies the repetition penalty to many rows of a step at once.

Transformers' processor takes one row with all its tokens, so each row costs a dozen calls per step.
Here a mask holds the tokens of each row, and a call serves ROWS rows. The numbers are the same.
"""

from typing import Any

import torch
from transformers import RepetitionPenaltyLogitsProcessor

from stages.decode.confidence import likeliest

ROWS = 8
"""Rows per call, so that intermediate results stay small."""


def penalty_of(processors: Any) -> float | None:
    """Return the penalty of a sequence with no other logits processor; None for others."""
    if len(processors) != 1 or type(processors[0]) is not RepetitionPenaltyLogitsProcessor:
        return None
    (only,) = processors
    return None if only.prompt_ignore_length is not None else float(only.penalty)


class RowPenalties:
    """The tokens of the rows that have the same penalty."""

    def __init__(self, penalty: float, logits: torch.Tensor, slots: int) -> None:
        """`logits` are of shape [1, vocabulary]."""
        self.penalty = penalty
        self._seen = logits.new_zeros(slots, logits.shape[-1], dtype=torch.bool)
        self._active = logits.new_zeros(slots, 1, dtype=torch.bool)

    def put(self, slot: int, ids: torch.Tensor) -> None:
        """Begin a sequence with these tokens, of shape [1, tokens]."""
        self._seen[slot] = False
        self._seen[slot, ids[0]] = True
        self._active[slot] = True

    def clear(self, slot: int) -> None:
        """Leave the row of a slot as it is from now on."""
        self._seen[slot] = self._active[slot] = False

    def select(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the likeliest token of each row after the penalty, of shape [rows]. The logits, of
        shape [rows, vocabulary], stay as they are."""
        count, chosen = len(self._seen), []
        for seen, rows in zip(self._seen.split(ROWS), logits[:count].split(ROWS), strict=True):
            changed = torch.where(rows < 0, rows * self.penalty, rows / self.penalty)
            chosen.append(likeliest(torch.where(seen, changed, rows)))
        return torch.cat([*chosen, likeliest(logits[count:])])

    def add(self, tokens: torch.Tensor) -> None:
        """Note the chosen tokens, of shape [rows]."""
        chosen = tokens[: len(self._seen)].unsqueeze(1)
        self._seen.scatter_(1, chosen, self._active | self._seen.gather(1, chosen))
