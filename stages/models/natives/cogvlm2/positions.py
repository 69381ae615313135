"""Position ids and rotary embedding of CogVLM2 prompts."""

from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding


def positions_of(
    standing: torch.Tensor, attention_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the position of each token, [rows, tokens]. All patches of a picture share one, and
    the tokens at its ends have their own. `standing` says which tokens are placeholders."""
    there = torch.ones_like(standing) if attention_mask is None else attention_mask.bool()
    seen = standing & there
    patches = seen & ~_first(seen) & ~_last(seen)
    steps = (there & ~patches) | _first(patches)
    return (steps.long().cumsum(-1) - 1).clamp(min=0)


def _first(seen: torch.Tensor) -> torch.Tensor:
    """Return which of the marked tokens have none before them."""
    first = seen.clone()
    first[:, 1:] &= ~seen[:, :-1]
    return first


def _last(seen: torch.Tensor) -> torch.Tensor:
    """Return which of the marked tokens have none behind them."""
    last = seen.clone()
    last[:, :-1] &= ~seen[:, 1:]
    return last


def of_experts(standing: torch.Tensor) -> torch.Tensor:
    """Return which tokens the visual experts read: placeholders, but not the last of a picture."""
    return standing & ~_last(standing)


class RoundedRotaryEmbedding(LlamaRotaryEmbedding):
    """Rotary positions whose frequencies were rounded to few bits. The class name matters:
    transformers recomputes the frequencies after loading for this name, and would keep
    uninitialized memory for another."""

    def __init__(self, config: LlamaConfig, rounding: str) -> None:
        super().__init__(config)
        self.rounding = getattr(torch, rounding)
        rounded = self._rounded(self.inv_freq)
        self.inv_freq = nn.Buffer(rounded, persistent=False)
        self.original_inv_freq = nn.Buffer(rounded.clone(), persistent=False)

    def _rounded(self, frequencies: torch.Tensor) -> torch.Tensor:
        return frequencies.to(self.rounding).float()

    def compute_default_rope_parameters(  # type: ignore[override]
        self, config: LlamaConfig, **_: Any
    ) -> tuple[torch.Tensor, float]:
        exact, scaling = LlamaRotaryEmbedding.compute_default_rope_parameters(config)
        # The first call comes of `__init__`, before it is known to what they are rounded.
        return (self._rounded(exact) if "rounding" in vars(self) else exact), scaling
