"""EVA-CLIP as a transformers model, under the class name that its files use.

Only the vision encoder is new. The text encoder, the projection of vectors and the logits are
CLIP's.
"""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, initialization
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.modeling_clip import (
    CLIPMLP,
    CLIPAttention,
    CLIPModel,
    CLIPPreTrainedModel,
    CLIPTextModel,
    CLIPVisionEmbeddings,
)
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from stages.models.in_tree.cogvlm2.model import VisionLayers
from stages.models.in_tree.evaclip.config import (
    SCALE,
    EvaCLIPConfig,
    EvaCLIPTextConfig,
    EvaCLIPVisionConfig,
)


def norm_of(config: EvaCLIPVisionConfig) -> nn.Module:
    """Make one of the vision encoder's norms."""
    norm_class = LlamaRMSNorm if config.use_rms_norm else nn.LayerNorm
    return norm_class(config.hidden_size, eps=config.layer_norm_eps)


class EvaCLIPVisionEmbeddings(CLIPVisionEmbeddings):
    """Patch embeddings with positions, after a class token for the whole image."""

    def __init__(self, config: EvaCLIPVisionConfig) -> None:
        super().__init__(config)
        size = config.patch_size
        self.patch_embedding = nn.Conv2d(config.num_channels, self.embed_dim, size, stride=size)


class EvaCLIPAttention(CLIPAttention):
    """Bidirectional attention over all patches; query, key and value may have no bias."""

    def __init__(self, config: EvaCLIPVisionConfig) -> None:
        super().__init__(config)
        width = self.embed_dim
        self.q_proj = nn.Linear(width, width, bias=config.q_bias)
        self.k_proj = nn.Linear(width, width, bias=config.k_bias)
        self.v_proj = nn.Linear(width, width, bias=config.v_bias)


class EvaCLIPEncoderLayer(nn.Module):
    """A layer of the encoder."""

    def __init__(self, config: EvaCLIPVisionConfig) -> None:
        super().__init__()
        self.self_attn, self.mlp = EvaCLIPAttention(config), CLIPMLP(config)
        self.layer_norm1, self.layer_norm2 = norm_of(config), norm_of(config)
        self.behind = config.post_layernorm

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.behind:
            hidden = hidden + self.layer_norm1(self.self_attn(hidden)[0])
            return hidden + self.layer_norm2(self.mlp(hidden))  # type: ignore[no-any-return]
        hidden = hidden + self.self_attn(self.layer_norm1(hidden))[0]
        return hidden + self.mlp(self.layer_norm2(hidden))  # type: ignore[no-any-return]


class EvaCLIPPreTrainedModel(CLIPPreTrainedModel):
    """The common base of the whole model and its vision encoder."""

    config_class = EvaCLIPConfig
    _no_split_modules = [  # noqa: RUF012
        "CLIPTextEmbeddings",
        "CLIPEncoderLayer",
        "EvaCLIPVisionEmbeddings",
        "EvaCLIPEncoderLayer",
    ]


class EvaCLIPVisionModel(EvaCLIPPreTrainedModel):
    """The vision encoder."""

    config_class = EvaCLIPVisionConfig  # type: ignore[assignment]
    config: EvaCLIPVisionConfig  # type: ignore[assignment]
    main_input_name = "pixel_values"
    input_modalities = ("image",)  # type: ignore[assignment]
    _input_embed_layer = "patch_embedding"

    def __init__(self, config: EvaCLIPVisionConfig) -> None:
        super().__init__(config)
        self.embeddings = EvaCLIPVisionEmbeddings(config)
        layers = (EvaCLIPEncoderLayer(config) for _ in range(config.num_hidden_layers))
        self.encoder = VisionLayers(layers)
        self.post_layernorm = norm_of(config)
        self.post_init()

    def forward(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False, **_: Any
    ) -> BaseModelOutputWithPooling:
        patches = self.embeddings(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding)
        hidden = self.encoder(patches)
        vectors = self.post_layernorm(hidden[:, 0])
        return BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=vectors)


class EvaCLIPModel(EvaCLIPPreTrainedModel, CLIPModel):
    """Both encoders."""

    config: EvaCLIPConfig

    def __init__(self, config: EvaCLIPConfig) -> None:
        # Not CLIPModel's own `__init__`, which would also make CLIP's vision encoder.
        PreTrainedModel.__init__(self, config)
        vision, text = config.vision_config, config.text_config
        assert isinstance(vision, EvaCLIPVisionConfig) and isinstance(text, EvaCLIPTextConfig)
        assert config.projection_dim is not None
        self.vision_embed_dim, self.text_embed_dim = vision.hidden_size, text.hidden_size
        self.text_model = CLIPTextModel._from_config(text)
        self.vision_model = EvaCLIPVisionModel._from_config(vision)
        self.visual_projection = nn.Linear(
            vision.hidden_size, config.projection_dim, bias=config.projection_bias
        )
        self.text_projection = nn.Linear(text.hidden_size, config.projection_dim, bias=False)
        scale = torch.tensor(SCALE, dtype=torch.float32)
        if config.scale_is_stored:
            self.logit_scale = nn.Parameter(scale)
        else:
            self.register_buffer("logit_scale", scale, persistent=False)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, EvaCLIPModel):
            initialization.constant_(module.logit_scale, SCALE)
