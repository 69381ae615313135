"""Maps the language half of a checkpoint to a GGUF architecture: metadata, tensor names, and what
llama.cpp expects of their values.

Only what a test has compared with transformers is mapped; anything else is refused by name.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from artifacts.errors import UsageError
from stages.models.gguf import FAMILIES

GEMMA_LARGE = 62
"""Layers of the one Gemma 3 whose attention llama.cpp scales by width / heads."""
SILU = ("silu", "swish", None)
GELU = ("gelu_pytorch_tanh",)


@dataclass(frozen=True, kw_only=True, slots=True)
class GgufArchitecture:
    """What is peculiar to an architecture of llama.cpp."""

    name: str
    partial: bool = False
    """Whether a part of each head may be rotated."""
    by_order: bool = False
    """Whether time positions may fall. llama.cpp judges causality by the first of four positions,
    so that one gets the order of tokens and no share of the rotary dimensions."""
    gemma: bool = False
    """Whether transformers adds 1 to the weights of norms, multiplies embeddings by the square root
    of their width, and computes GELU."""
    scales_inputs: bool = False
    """Whether llama.cpp multiplies its inputs by that root, too."""
    windows: bool = False
    """Whether each layer states if its attention has a sliding window."""
    ropes: tuple[str, ...] = ("default",)
    """Types of rotary positions."""
    tied: bool = False
    """Whether the output head is always the embedding table."""


LLAMA = GgufArchitecture(name="llama", ropes=("default", "linear", "llama3"))
QWEN2 = GgufArchitecture(name="qwen2")
PADDLE = GgufArchitecture(name="paddleocr", by_order=True)
"""It computes what `qwen2vl` does, but this version of llama.cpp reads the epsilon of norms for the
former alone."""
GEMMA = GgufArchitecture(name="gemma", gemma=True, scales_inputs=True, tied=True)
GEMMA3 = GgufArchitecture(name="gemma3", gemma=True, windows=True, ropes=("default", "linear"))
GLM4 = GgufArchitecture(name="glm4", partial=True)
ARCHITECTURES: Mapping[str, GgufArchitecture] = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "emu3_text_model": LLAMA,
    "qwen2": QWEN2,
    "qwen2_vl_text": PADDLE,
    "qwen2_5_vl_text": PADDLE,
    "qwen2_5_omni_text": PADDLE,
    "paddleocr_vl_text": PADDLE,
    "qwen3": GgufArchitecture(name="qwen3"),
    "qwen3_vl_text": GgufArchitecture(name="qwen3vl"),
    "gemma": GEMMA,
    "gemma3_text": GEMMA3,
    "glm4v_text": GLM4,
    "glm_ocr_text": GLM4,
    "lfm2": GgufArchitecture(name="lfm2"),
    "cohere2": GgufArchitecture(name="cohere2", windows=True, tied=True),
}
"""`model_type` of a text configuration → GGUF architecture."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextMapping:
    """How a text decoder is written as GGUF."""

    made: GgufArchitecture
    config: PreTrainedConfig
    """The configuration of the text decoder."""
    deepstack: int = 0
    """Layers that get image features of their own."""

    @property
    def architecture(self) -> str:
        return self.made.name

    @property
    def heads(self) -> int:
        return int(self.config.num_attention_heads)

    @property
    def kv_heads(self) -> int:
        return int(self.config.num_key_value_heads)

    @property
    def head_size(self) -> int:
        own = getattr(self.config, "head_dim", None)
        return int(own or self.config.hidden_size // self.heads)

    @property
    def embedding_scale(self) -> float:
        """Return the factor of the embedding table's rows."""
        return float(self.config.hidden_size**0.5) if self.made.gemma else 1.0

    @property
    def input_scale(self) -> float:
        """Return the factor that undoes what llama.cpp multiplies its inputs by."""
        return float(self.config.hidden_size**-0.5) if self.made.scales_inputs else 1.0

    @property
    def window(self) -> int:
        """Return the tokens that a sliding window has; 0: none."""
        return int(self.config.sliding_window) if self.made.windows else 0

    @property
    def causal(self) -> bool:
        """Return whether a prompt without an attention mask is causal."""
        return not getattr(self.config, "use_bidirectional_attention", False)

    @property
    def rope(self) -> Mapping[str, Any]:
        """Return the rotary positions of layers that see all tokens."""
        return _rope_of(self.config)

    @property
    def dimensions(self) -> dict[str, int]:
        """Return what of GgufShape does not depend on the kind of file."""
        width = self.config.hidden_size * (1 + self.deepstack)
        inner, whole = self.config.intermediate_size, int(not self.causal)
        return {"width": width, "inner": inner, "heads": self.heads, "whole": whole}

    def add_metadata(self, writer: Any, words: int) -> None:
        """Write the metadata of the decoder to a GGUFWriter; `words`: rows of its embedding."""
        config = self.config
        writer.add_block_count(config.num_hidden_layers)
        writer.add_context_length(config.max_position_embeddings)
        writer.add_embedding_length(config.hidden_size)
        writer.add_feed_forward_length(self._feed_forward())
        writer.add_head_count(self.heads)
        writer.add_head_count_kv(self._kv_heads_of_layers())
        writer.add_key_length(self.head_size)
        writer.add_value_length(self.head_size)
        self._add_rope(writer)
        if self.made.windows:
            kinds = [kind == "sliding_attention" for kind in config.layer_types]
            writer.add_sliding_window(self.window)
            writer.add_sliding_window_pattern(kinds)
        if self.architecture == "cohere2":
            writer.add_layer_norm_eps(config.layer_norm_eps)
            writer.add_logit_scale(1.0)  # these families have no scale
        elif self.architecture == "lfm2":
            writer.add_layer_norm_rms_eps(config.norm_eps)
            writer.add_shortconv_l_cache(config.conv_L_cache)
        else:
            writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        if self.deepstack:
            writer.add_uint32(f"{self.architecture}.n_deepstack_layers", self.deepstack)
        writer.add_vocab_size(words)

    def _add_rope(self, writer: Any) -> None:
        rope = self.rope
        rotated = int(self.head_size * rope.get("partial_rotary_factor", 1.0))
        writer.add_rope_freq_base(rope["rope_theta"])
        writer.add_rope_dimension_count(rotated)
        if "sliding_attention" in self.config.rope_parameters:
            theta = self.config.rope_parameters["sliding_attention"]["rope_theta"]
            writer.add_float32(f"{self.architecture}.rope.freq_base_swa", theta)
        if rope.get("rope_type") == "linear":
            writer.add_string(f"{self.architecture}.rope.scaling.type", "linear")
            writer.add_rope_scaling_factor(rope["factor"])
        if sections := list(rope.get("mrope_section") or ()):
            order_first = [0, *sections] if self.made.by_order else [*sections, 0]
            writer.add_rope_dimension_sections(order_first)

    def _feed_forward(self) -> int:
        config, size = self.config, int(self.config.intermediate_size)
        if not getattr(config, "block_auto_adjust_ff_dim", False):
            return size
        size = int(2 * size / 3)
        if config.block_ffn_dim_multiplier is not None:
            multiple = int(config.block_multiple_of)
            size = int(config.block_ffn_dim_multiplier * size)
            size = multiple * -(-size // multiple)
        return size

    def _kv_heads_of_layers(self) -> int | list[int]:
        kinds = getattr(self.config, "layer_types", None) or ()
        if "conv" not in kinds:
            return self.kv_heads
        return [0 if kind == "conv" else self.kv_heads for kind in kinds]

    def added(self) -> Mapping[str, torch.Tensor]:
        """Return tensors that are not in the checkpoint: divisors of scaled rotary frequencies."""
        if self.rope.get("rope_type") != "llama3":
            return {}
        scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](self.config, torch.device("cpu"))
        steps = torch.arange(0, self.head_size, 2, dtype=torch.float32) / self.head_size
        return {"rope_freqs.weight": 1.0 / (self.rope["rope_theta"] ** steps) / scaled}

    def changed(self, path: str, weight: torch.Tensor) -> torch.Tensor:
        """Return a weight as a GGUF file holds it, but for the order of the rows of a head. `path`:
        its name in the model."""
        if self.made.gemma and "norm" in path:
            return weight.float() + 1.0
        return weight.squeeze(1) if path.endswith("conv.conv.weight") else weight


def mapping_of(config: PreTrainedConfig, name: str) -> TextMapping:
    """Return the mapping of a model's text decoder. Raises UsageError for a model that is not
    mapped; `name` is what the user called it."""
    text = config.get_text_config(decoder=True)
    mapping = ARCHITECTURES.get(text.model_type)
    if config.model_type not in FAMILIES or mapping is None:
        why = f"{config.model_type} with a {text.model_type} decoder"
    else:
        why = _unmapped(text, mapping)
    if why or mapping is None:
        raise UsageError(
            f"{name} is not mapped to GGUF: {why}",
            hint="Leave --language-gguf out, or choose a model that docs/gguf.md lists",
        )
    seen = getattr(config, "vision_config", None)
    return TextMapping(
        made=mapping,
        config=text,
        deepstack=len(getattr(seen, "deepstack_visual_indexes", None) or ()),
    )


def _rope_of(text: PreTrainedConfig) -> Mapping[str, Any]:
    parameters = text.rope_parameters or {}
    rope: Mapping[str, Any] = parameters.get("full_attention", parameters)
    return rope


def _unmapped(text: PreTrainedConfig, made: GgufArchitecture) -> str:
    """Return what of a text configuration is not mapped; empty if all is."""
    rope = _rope_of(text)
    near = (text.rope_parameters or {}).get("sliding_attention", {})
    for layer_rope, supported in ((rope, made.ropes), (near, ("default",))):
        if layer_rope.get("rope_type", "default") not in supported:
            return f"its rotary positions are scaled ({layer_rope['rope_type']})"
    if rope.get("partial_rotary_factor", 1.0) != 1.0 and not made.partial:
        return "only a part of its heads is rotated"
    act = getattr(text, "hidden_activation", None) or getattr(text, "hidden_act", None)
    if act not in (GELU if made.gemma else SILU):
        return f"its MLP uses {act}"
    kinds = set(getattr(text, "layer_types", None) or ())
    window = getattr(text, "sliding_window", None) if not kinds else None
    others = kinds - {"full_attention", "conv" if made.name == "lfm2" else ""}
    if not made.windows and (window or others):
        return "its attention has a sliding window"
    if made.windows and (not kinds or others - {"sliding_attention"}):
        return f"its layers are of unknown kinds ({', '.join(sorted(kinds)) or 'none given'})"
    return _gemma_unmapped(text) if made is GEMMA3 else ""


def _gemma_unmapped(text: PreTrainedConfig) -> str:
    large = text.num_hidden_layers == GEMMA_LARGE
    size = text.hidden_size // text.num_attention_heads if large else text.head_dim
    if text.query_pre_attn_scalar != size:
        return f"its attention is scaled by {text.query_pre_attn_scalar} dimensions"
    if text.attn_logit_softcapping or text.final_logit_softcapping:
        return "its logits are capped"
    if getattr(text, "use_bidirectional_attention", None):
        return "all of its tokens see later ones"
    return ""
