"""Penalizes tokens that the answer already holds; tokens of the prompt do not count."""

import torch
from transformers import LogitsProcessor


class PresencePenalty(LogitsProcessor):
    """Subtracts a number from the logit of every token that was generated since the first call."""

    def __init__(self, penalty: float) -> None:
        self._penalty = penalty
        self._prompt_length: int | None = None
        """Number of tokens before the first generated one, known from the first call."""

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the penalized scores, of shape [rows, vocabulary]. `ids` are of shape [rows,
        tokens]."""
        if self._prompt_length is None:
            self._prompt_length = ids.shape[1]
        seen = torch.zeros_like(scores, dtype=torch.bool)
        seen.scatter_(1, ids[:, self._prompt_length :].to(scores.device), value=True)
        return torch.where(seen, scores - self._penalty, scores)
