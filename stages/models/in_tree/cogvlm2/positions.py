"""Position ids and rotary embedding of CogVLM2 prompts."""

from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding


def positions_of(
    standing: torch.Tensor, attention_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the position of each token, [rows, tokens]. All patches of an image share one; the
    tokens at its ends have their own. `standing` marks the placeholders."""
    there = torch.ones_like(standing) if attention_mask is None else attention_mask.bool()
    seen = standing & there
    patches = seen & ~_first(seen) & ~_last(seen)
    steps = (there & ~patches) | _first(patches)
    return (steps.long().cumsum(-1) - 1).clamp(min=0)


def _first(seen: torch.Tensor) -> torch.Tensor:
    """Mark the first token of each marked run."""
    first = seen.clone()
    first[:, 1:] &= ~seen[:, :-1]
    return first


def _last(seen: torch.Tensor) -> torch.Tensor:
    """Mark the last token of each marked run."""
    last = seen.clone()
    last[:, :-1] &= ~seen[:, 1:]
    return last


def of_experts(standing: torch.Tensor) -> torch.Tensor:
    """Mark the tokens that visual experts read: all placeholders but the last of each image."""
    return standing & ~_last(standing)


class RoundedRotaryEmbedding(LlamaRotaryEmbedding):
    """Rotary positions whose frequencies are rounded to a low-precision type. The class name
    matters: only for this name does transformers recompute the frequencies after loading. For
    another name it would keep uninitialized memory."""

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
        # The first call comes from `__init__`, before `rounding` is set.
        return (self._rounded(exact) if "rounding" in vars(self) else exact), scaling
