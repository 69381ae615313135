"""The configuration of EVA-CLIP, from its published config.json and its tensor names."""

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from transformers.configuration_utils import SubConfigSpec

from stages.models.hub.checkpoint import INDEX, SINGLE, weight_map
from stages.models.hub.headers import read_places

LAYER = "vision_model.encoder.layers.0."
ENCODERS: Mapping[int, tuple[int, bool]] = {
    1792: (112, True),  # E and E-plus
    4096: (128, False),  # 8B and 8B-448
    5120: (128, True),  # 18B
}
"""Width of a published vision encoder → width of a head, and whether norms follow attention and
MLP."""
SCALE = math.log(100)
"""Logarithm of the scale of the logits, at which training held it. The published class has it as a
constant, so the hub's files have no tensor of it; config.json states another number, and the
published code takes the exponential of 100 itself (baaivision/EVA#140)."""
HIGHEST = 2
"""End token id for which transformers' CLIP takes the position of the highest id as the end, as the
published code does. The id in config.json is ignored."""


@strict
class EvaCLIPVisionConfig(CLIPVisionConfig):
    """The vision encoder."""

    model_type = "eva_clip_vision_model"

    hidden_size: int = 4096
    intermediate_size: int = 20480
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    image_size: int = 224
    patch_size: int = 14
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6
    q_bias: bool = False
    k_bias: bool = False
    v_bias: bool = False
    use_rms_norm: bool = True
    post_layernorm: bool = False
    """Whether norms follow attention and MLP in every layer. The encoder's last norm, whose tensors
    have this name, always exists."""


@strict
class EvaCLIPTextConfig(CLIPTextConfig):
    """The text encoder, which is CLIP's."""

    model_type = "eva_clip_text_model"

    hidden_size: int = 1280
    intermediate_size: int = 5120
    num_hidden_layers: int = 32
    num_attention_heads: int = 20
    hidden_act: str = "gelu"

    def __post_init__(self, **kwargs: Any) -> None:
        self.eos_token_id = HIGHEST
        super().__post_init__(**kwargs)


@strict
class EvaCLIPConfig(CLIPConfig):
    """The whole model."""

    model_type = "eva_clip"
    sub_configs_defaults = {  # noqa: RUF012
        "vision_config": SubConfigSpec(EvaCLIPVisionConfig),
        "text_config": SubConfigSpec(EvaCLIPTextConfig),
    }

    projection_dim: int | None = 1280
    projection_bias: bool = True
    """Whether the image projection has a bias."""
    scale_is_stored: bool = True
    """Whether the files hold the logarithm of the scale of the logits; if not, it is SCALE."""

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: Any, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        published, rest = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        return _corrected(published, names_in(Path(pretrained_model_name_or_path))), rest


def _corrected(published: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Return the published config.json, corrected by the names of the tensors: it may lack a flag,
    or state that of another file."""
    vision, text = (
        dict(published.get(f"{encoder}_config") or {}) for encoder in ("vision", "text")
    )
    for encoder in (vision, text):
        encoder.pop("model_type", None)  # CLIP's own
    _, behind = ENCODERS.get(vision.get("hidden_size", 0), (0, False))
    vision.setdefault("post_layernorm", behind)
    corrected: dict[str, Any] = {"vision_config": vision, "text_config": text}
    if names:
        vision |= {f"{part}_bias": f"{LAYER}self_attn.{part}_proj.bias" in names for part in "qkv"}
        vision["use_rms_norm"] = f"{LAYER}layer_norm1.bias" not in names
        corrected["projection_bias"] = "visual_projection.bias" in names
        corrected["scale_is_stored"] = "logit_scale" in names
    others = {
        name: value for name, value in published.items() if name not in ("auto_map", "model_type")
    }
    return {**others, **corrected, "model_type": EvaCLIPConfig.model_type}


def names_in(folder: Path) -> set[str]:
    """Return the names of the tensors in a folder, from its file's header or its index; empty if
    there are none. Raises EnvironmentFault for an incomplete file."""
    if (folder / SINGLE).exists():
        return set(read_places(folder / SINGLE))
    return set(weight_map(folder / INDEX)) if (folder / INDEX).exists() else set()
