"""The vision half of CogVLM2: turns pixels into image features.

The encoder is EVA02-E. Its norms come after attention and MLP, despite their names in the files,
and it has no final norm. Then a convolution merges four patches into one, and an adapter projects
them to the width of the language half. A learned token is put before and after them.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.clip.modeling_clip import CLIPMLP
from transformers.models.llama.modeling_llama import eager_attention_forward

from stages.models.in_tree.cogvlm2.config import CogVLM2VisionConfig


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
    **options: Any,
) -> torch.Tensor:
    """Return the output of a module's attention, of shape [rows, tokens, heads, width]."""
    name = module.config._attn_implementation
    function = ALL_ATTENTION_FUNCTIONS.get_interface(name, eager_attention_forward)
    made: torch.Tensor = function(
        module, query, key, value, mask, dropout=0.0, scaling=module.scaling, **options
    )[0]
    return made


class PatchEmbedding(nn.Module):
    """Patch embeddings with positions, after a class token for the whole image."""

    def __init__(self, config: CogVLM2VisionConfig) -> None:
        super().__init__()
        width, size = config.hidden_size, config.patch_size
        self.proj = nn.Conv2d(config.in_channels, width, kernel_size=size, stride=size)
        self.cls_embedding = nn.Parameter(torch.zeros(1, width))
        self.position_embedding = nn.Embedding(config.num_positions, width)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        patches = self.proj(pixels).flatten(2).mT
        first = self.cls_embedding.expand(len(patches), 1, -1)
        return torch.cat([first, patches], dim=1) + self.position_embedding.weight


class VisionAttention(nn.Module):
    """Bidirectional attention over all patches."""

    num_key_value_groups = 1
    is_causal = False

    def __init__(self, config: CogVLM2VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.heads = config.num_heads
        self.scaling = (config.hidden_size // config.num_heads) ** -0.5
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        parts = self.query_key_value(hidden).unflatten(-1, (3, self.heads, -1))
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        made = attend(self, query, key, value, is_causal=False)
        return self.dense(made.reshape(hidden.shape))  # type: ignore[no-any-return]


class CogVLM2VisionLayer(nn.Module):
    """A layer of the encoder."""

    def __init__(self, config: CogVLM2VisionConfig) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = VisionAttention(config)
        self.mlp = CLIPMLP(config)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = hidden + self.input_layernorm(self.attention(hidden))
        return hidden + self.post_attention_layernorm(self.mlp(hidden))  # type: ignore[no-any-return]


class VisionLayers(nn.Module):
    """The layers of an encoder in order."""

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden


class Adapter(nn.Module):
    """Projects patches to the width of the language half."""

    def __init__(self, config: CogVLM2VisionConfig) -> None:
        super().__init__()
        inner, out = config.adapter_size, config.out_hidden_size
        self.linear_proj = nn.Linear(config.hidden_size, out, bias=False)
        self.norm1 = nn.LayerNorm(out)
        self.dense_h_to_4h = nn.Linear(out, inner, bias=False)
        self.gate_proj = nn.Linear(out, inner, bias=False)
        self.dense_4h_to_h = nn.Linear(inner, out, bias=False)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        hidden = nn.functional.gelu(self.norm1(self.linear_proj(patches)))
        inner = nn.functional.silu(self.gate_proj(hidden)) * self.dense_h_to_4h(hidden)
        return self.dense_4h_to_h(inner)  # type: ignore[no-any-return]


class CogVLM2VisionModel(PreTrainedModel):
    """The vision half."""

    config_class = CogVLM2VisionConfig
    config: CogVLM2VisionConfig
    main_input_name = "pixel_values"
    input_modalities = ["image", "video"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _no_split_modules = ["CogVLM2VisionLayer"]  # noqa: RUF012

    def __init__(self, config: CogVLM2VisionConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.patch_embedding = PatchEmbedding(config)
        layers = (CogVLM2VisionLayer(config) for _ in range(config.num_hidden_layers))
        self.transformer = VisionLayers(layers)
        self.conv = nn.Conv2d(width, width, kernel_size=2, stride=2)
        self.linear_proj = Adapter(config)
        self.boi = nn.Parameter(torch.zeros(1, 1, config.out_hidden_size))
        self.eoi = nn.Parameter(torch.zeros(1, 1, config.out_hidden_size))
        self.post_init()

    def forward(self, pixel_values: torch.Tensor, **_: Any) -> BaseModelOutputWithPooling:
        hidden = self.transformer(self.patch_embedding(pixel_values))
        side = self.config.image_size // self.config.patch_size
        grid = hidden[:, 1:].mT.unflatten(-1, (side, side))
        patches = self.linear_proj(self.conv(grid).flatten(2).mT)
        first, last = (end.expand(len(patches), -1, -1) for end in (self.boi, self.eoi))
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden, pooler_output=torch.cat([first, patches, last], dim=1)
        )
