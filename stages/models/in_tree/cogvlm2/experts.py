"""The language half of CogVLM2's image chat model: a Llama whose layers have separate weights for
text and for image tokens."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaModel
from transformers.models.llama.modeling_llama import (
    LlamaMLP,
    LlamaRMSNorm,
    apply_rotary_pos_emb,
)

from stages.models.in_tree.cogvlm2.vision import attend

Layer = Callable[[torch.Tensor], torch.Tensor]


def routed(
    hidden: torch.Tensor, seen: torch.Tensor | None, language: Layer, vision: Layer
) -> torch.Tensor:
    """Return the output of `vision` for tokens that `seen` marks, of `language` for the rest."""
    if seen is None:
        return language(hidden)
    text = language(hidden[~seen])
    made = text.new_empty((*hidden.shape[:-1], text.shape[-1]))
    made[~seen] = text
    made[seen] = vision(hidden[seen])
    return made


class ExpertAttention(nn.Module):
    """Causal attention with one set of weights for text and one for image tokens."""

    is_causal = True

    def __init__(self, config: LlamaConfig, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        heads, keys = config.num_attention_heads, config.num_key_value_heads or 1
        self.head_dim = config.head_dim or config.hidden_size // heads
        self.num_key_value_groups = heads // keys
        self.scaling = self.head_dim**-0.5
        self.sizes = [self.head_dim * count for count in (heads, keys, keys)]
        width, fused = config.hidden_size, sum(self.sizes)
        self.language_expert_query_key_value = nn.Linear(width, fused, bias=False)
        self.vision_expert_query_key_value = nn.Linear(width, fused, bias=True)
        self.language_expert_dense = nn.Linear(width, width, bias=False)
        self.vision_expert_dense = nn.Linear(width, width, bias=False)

    def forward(
        self,
        hidden: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None,
        past_key_values: Any,
        seen: torch.Tensor | None,
    ) -> torch.Tensor:
        fused = routed(
            hidden,
            seen,
            self.language_expert_query_key_value,
            self.vision_expert_query_key_value,
        )
        parts = fused.split(self.sizes, dim=-1)
        query, key, value = (p.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for p in parts)
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        made = attend(self, query, key, value, attention_mask).reshape(hidden.shape)
        return routed(made, seen, self.language_expert_dense, self.vision_expert_dense)


class ExpertMLP(nn.Module):
    """Two MLPs: one for text, one for image tokens."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.language_mlp = LlamaMLP(config)
        self.vision_mlp = LlamaMLP(config)

    def forward(self, hidden: torch.Tensor, seen: torch.Tensor | None) -> torch.Tensor:
        return routed(hidden, seen, self.language_mlp, self.vision_mlp)


class CogVLM2ExpertLayer(nn.Module):
    """A layer of the language half."""

    def __init__(self, config: LlamaConfig, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = ExpertAttention(config, layer_idx)
        self.mlp = ExpertMLP(config)
        self.input_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self,
        hidden: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        past_key_values: Any = None,
        seen: torch.Tensor | None = None,
        **_: Any,
    ) -> torch.Tensor:
        normed = self.input_layernorm(hidden)
        hidden = hidden + self.self_attn(
            normed, position_embeddings, attention_mask, past_key_values, seen
        )
        return hidden + self.mlp(self.post_attention_layernorm(hidden), seen)  # type: ignore[no-any-return]


class CogVLM2ExpertModel(LlamaModel):
    """The language half. Its `forward` passes `seen` on to the layers."""

    _no_split_modules = ["CogVLM2ExpertLayer"]  # noqa: RUF012

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList(
            CogVLM2ExpertLayer(config, index) for index in range(config.num_hidden_layers)
        )
        self.post_init()
