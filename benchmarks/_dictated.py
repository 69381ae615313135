"""Has a model say given words, to read off what it would have said."""

from collections.abc import Sequence

import torch


class Dictated:
    """Makes `generate` say given tokens, while the model's own logits are kept."""

    def __init__(self, tokens: Sequence[torch.Tensor], end: int) -> None:
        longest = max(len(row) for row in tokens)
        padded = [torch.nn.functional.pad(r, (0, longest - len(r)), value=end) for r in tokens]
        self._tokens = torch.stack(padded)
        self._step = 0

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        wanted = self._tokens[:, self._step].to(scores.device)
        self._step += 1
        return torch.full_like(scores, -torch.inf).scatter(1, wanted[:, None], 0.0)
