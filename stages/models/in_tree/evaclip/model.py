"""EVA-CLIP as a transformers model, under the class name that its files use.

Only the vision encoder is new. The text encoder, the projection of vectors and the logits are
CLIP's.

Maps the tensor names of EVA-CLIP's original files to those of its hub repositories. Reads no
file.

Neither names nor shapes show an encoder's number of heads or the place of its norms. Both are known
for the published widths.
"""

import logging
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
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

from stages.models.in_tree.cogvlm2.vision import VisionLayers
from stages.models.in_tree.evaclip.config import (
    EvaCLIPConfig,
    EvaCLIPTextConfig,
    EvaCLIPVisionConfig,
)

logger = logging.getLogger(__name__)

VISION, TEXT = "vision_model.encoder.layers.", "text_model.encoder.layers."
BLOCK, RESBLOCK = r"^visual\.blocks\.(\d+)\.", r"^text\.transformer\.resblocks\.(\d+)\."
CLASS = "vision_model.embeddings.class_embedding"
POSITIONS = "vision_model.embeddings.position_embedding.weight"
PROJECTION = "text_projection.weight"
RENAMED: tuple[tuple[str, str], ...] = (
    (r"^logit_scale$", "logit_scale"),
    (r"^visual\.cls_token$", CLASS),
    (r"^visual\.pos_embed$", POSITIONS),
    (r"^visual\.patch_embed\.proj\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual\.norm\.", "vision_model.post_layernorm."),
    (r"^visual\.head\.", "visual_projection."),
    (rf"{BLOCK}norm([12])\.", rf"{VISION}\1.layer_norm\2."),
    (rf"{BLOCK}attn\.([qv])_bias$", rf"{VISION}\1.self_attn.\2_proj.bias"),
    (rf"{BLOCK}attn\.proj\.", rf"{VISION}\1.self_attn.out_proj."),
    (rf"{BLOCK}mlp\.(fc[12])\.", rf"{VISION}\1.mlp.\2."),
    (r"^text\.token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"^text\.positional_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"^text\.ln_final\.", "text_model.final_layer_norm."),
    (r"^text\.text_projection$", PROJECTION),
    (rf"{RESBLOCK}ln_([12])\.", rf"{TEXT}\1.layer_norm\2."),
    (rf"{RESBLOCK}attn\.out_proj\.", rf"{TEXT}\1.self_attn.out_proj."),
    (rf"{RESBLOCK}mlp\.c_fc\.", rf"{TEXT}\1.mlp.fc1."),
    (rf"{RESBLOCK}mlp\.c_proj\.", rf"{TEXT}\1.mlp.fc2."),
)
"""Pattern of a published name → replacement for the matched text."""
FUSED: tuple[tuple[str, str], ...] = (
    (rf"{BLOCK}attn\.qkv\.(weight)$", VISION),
    (rf"{RESBLOCK}attn\.in_proj_(weight|bias)$", TEXT),
)
"""Pattern of a tensor that fuses three → prefix of its layer."""
TEXT_HEAD = 64
"""Head width of all published text encoders."""


def recognises(names: Collection[str]) -> bool:
    """Return whether these are the names of a complete original file: vision encoder, text encoder
    and nothing unknown, such as the rotary positions of the small models."""
    needed = {"visual.blocks.0.attn.qkv.weight", "text.text_projection", "logit_scale"}
    return needed <= set(names) and all(any(_named(name)) for name in names)


def rename(name: str, tensor: torch.Tensor) -> Iterable[tuple[str, torch.Tensor]]:
    """Return the converted tensors of an original one, without copying."""
    found = list(_named(name))
    parts = tensor.chunk(3) if len(found) > 1 else (_shaped(found[0], tensor),) if found else ()
    return zip(found, parts, strict=True)


def _named(name: str) -> Iterator[str]:
    """Yield the converted names of a tensor: three of a fused one, none of an unknown one."""
    for pattern, layers in FUSED:
        if found := re.match(pattern, name):
            yield from (f"{layers}{found[1]}.self_attn.{part}_proj.{found[2]}" for part in "qkv")
            return
    for pattern, place in RENAMED:
        if re.match(pattern, name):
            yield re.sub(pattern, place, name)
            return


def _shaped(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor in the shape that its converted name has."""
    if name == PROJECTION:
        return tensor.mT
    if name in (CLASS, POSITIONS):
        return tensor.flatten(0, -2) if name == POSITIONS else tensor.flatten()
    return tensor


def config(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, object]:
    """Return the config.json of the converted file; `shapes` are those in the original file. For a
    vision encoder of unpublished width, settings are assumed with a warning."""
    from stages.models.in_tree.evaclip.config import ENCODERS  # brings transformers

    width = shapes["visual.cls_token"][-1]
    patch = shapes["visual.patch_embed.proj.weight"][-1]
    if width not in ENCODERS:
        logger.warning(
            "no EVA-CLIP with a vision encoder of width %d is known: assuming heads of width %d "
            "and norms before attention and MLP; correct config.json if that is wrong",
            width,
            TEXT_HEAD,
        )
    head, behind = ENCODERS.get(width, (TEXT_HEAD, False))
    vision = {
        "hidden_size": width,
        "intermediate_size": shapes["visual.blocks.0.mlp.fc1.weight"][0],
        "num_hidden_layers": _layers(BLOCK, shapes),
        "num_attention_heads": max(1, width // head),
        "image_size": math.isqrt(shapes["visual.pos_embed"][-2] - 1) * patch,
        "patch_size": patch,
        "post_layernorm": behind,
        "layer_norm_eps": 1e-6,
    }
    vocabulary, width = shapes["text.token_embedding.weight"]
    text = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": shapes["text.transformer.resblocks.0.mlp.c_fc.weight"][0],
        "num_hidden_layers": _layers(RESBLOCK, shapes),
        "num_attention_heads": max(1, width // TEXT_HEAD),
        "max_position_embeddings": shapes["text.positional_embedding"][0],
    }
    return {
        "architectures": ["EvaCLIPModel"],
        "model_type": "clip",
        "projection_dim": shapes["text.text_projection"][1],
        "vision_config": vision,
        "text_config": text,
    }


def _layers(pattern: str, shapes: Mapping[str, tuple[int, ...]]) -> int:
    return 1 + max(int(found[1]) for name in shapes if (found := re.match(pattern, name)))


def norm_of(config: EvaCLIPVisionConfig) -> nn.Module:
    """Make one of the vision encoder's norms."""
    made = LlamaRMSNorm if config.use_rms_norm else nn.LayerNorm
    return made(config.hidden_size, eps=config.layer_norm_eps)


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
        self.logit_scale = nn.Parameter(torch.tensor(config.logit_scale_init_value))
        self.post_init()
