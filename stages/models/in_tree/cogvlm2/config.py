"""The configuration of CogVLM2, from its published flat config.json or from a saved one."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import LlamaConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

PLACEHOLDER = 128002
"""Llama 3 token that stands in for each image feature. Published files call it padding."""
BEGIN, END = 128000, 128001
THETA = 500000.0
"""Base of the rotary positions. The published code contains it; config.json does not."""
EXPERTS = "CogVLMForCausalLM"
"""Published class whose language half has a second set of weights for images."""
OF_TEXT = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "rms_norm_eps",
    "hidden_act",
    "initializer_range",
    "bos_token_id",
    "eos_token_id",
    "use_cache",
)
"""Published settings that have the same names in a Llama configuration."""


@strict
class CogVLM2VisionConfig(PreTrainedConfig):
    """The vision half: EVA02-E, a convolution that merges four patches into one, and an adapter."""

    model_type = "cogvlm2_vision"
    base_config_key = "vision_config"

    hidden_size: int = 1792
    intermediate_size: int = 15360
    num_hidden_layers: int = 63
    num_heads: int = 16
    image_size: int = 224
    patch_size: int = 14
    in_channels: int = 3
    num_positions: int = 257
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6
    dropout_prob: float = 0.0
    initializer_range: float = 0.02
    out_hidden_size: int = 4096
    """Width of the language half."""
    adapter_size: int = 14336
    """Inner width of the adapter."""

    @property
    def tokens_per_image(self) -> int:
        """Return the placeholders per image: one per four patches, and two at the ends."""
        side = self.image_size // self.patch_size // 2
        return side * side + 2


@strict
class CogVLM2Config(PreTrainedConfig):
    """The whole model. The language half is a Llama."""

    model_type = "cogvlm2"
    sub_configs_defaults = {  # noqa: RUF012
        "vision_config": SubConfigSpec(CogVLM2VisionConfig),
        "text_config": SubConfigSpec(LlamaConfig),
    }

    vision_config: dict[str, Any] | PreTrainedConfig | None = None
    text_config: dict[str, Any] | PreTrainedConfig | None = None
    visual_experts: bool = False
    image_token_id: int = PLACEHOLDER
    video_token_id: int = PLACEHOLDER
    rope_rounding: str | None = None
    """Type to which the frequencies of the rotary positions are rounded; None: exact."""
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        if self.text_config is None:
            kwargs = self._take_apart(kwargs)
        super().__post_init__(**kwargs)

    def _take_apart(self, flat: dict[str, Any]) -> dict[str, Any]:
        """Set the halves' configurations from published settings. Return the remaining settings."""
        text = {name: flat[name] for name in OF_TEXT if name in flat}
        text["num_key_value_heads"] = flat.get("num_multi_query_heads")
        text["rope_parameters"] = {"rope_type": "default", "rope_theta": THETA}
        self.text_config = text
        vision = self.vision_config if isinstance(self.vision_config, dict) else {}
        inner = {"out_hidden_size": "hidden_size", "adapter_size": "intermediate_size"}
        of_text = {name: text[taken] for name, taken in inner.items() if taken in text}
        self.vision_config = {**of_text, **vision}
        self.visual_experts = EXPERTS in (self.architectures or ())
        placeholder = flat.get("pad_token_id")
        self.image_token_id = PLACEHOLDER if placeholder is None else placeholder
        self.video_token_id = self.image_token_id
        end = flat.get("eos_token_id", END)
        # Padding with the placeholder would make a row look as if it began with images.
        ids = {"bos_token_id": flat.get("bos_token_id", BEGIN), "eos_token_id": end}
        taken = {*OF_TEXT, "num_multi_query_heads", "auto_map", "pad_token_id"}
        rest = {name: value for name, value in flat.items() if name not in taken}
        return {**rest, **ids, "pad_token_id": end}
