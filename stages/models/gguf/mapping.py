"""Maps the language half of a checkpoint to a GGUF architecture: metadata, tensor names, and the
order of rows that llama.cpp expects.

Only what a test has compared with transformers is mapped; anything else is refused by name.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from artifacts.errors import UsageError

ARCHITECTURES: Mapping[str, str] = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen2_vl_text": "paddleocr",
    "qwen2_5_vl_text": "paddleocr",
    "qwen3": "qwen3",
    "qwen3_vl_text": "qwen3vl",
}
"""`model_type` of a text configuration → GGUF architecture. `paddleocr` computes what `qwen2vl`
does, but this version of llama.cpp reads the epsilon of norms for the former alone."""
FAMILIES = frozenset(
    {
        *("llava", "llava_next", "llava_next_video", "llava_onevision", "video_llava", "vipllava"),
        *("internvl", "qianfan_ocr", "ovis2", "fast_vlm", "perception_lm", "video_llama_3"),
        *("smolvlm", "idefics2", "idefics3", "mistral3", "lighton_ocr", "got_ocr2"),
        *("deepseek_vl", "deepseek_vl_hybrid", "janus", "pp_chart2table"),
        *("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "cosmos3_omni"),
    }
)
"""`model_type` of the models whose language halves the tests have compared."""
BY_ORDER = frozenset({"paddleocr"})
"""Architectures whose time positions may fall. llama.cpp judges causality by the first of four
positions, so that one gets the order of tokens and no share of the rotary dimensions."""
SILU = ("silu", "swish")
Order = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class TextMapping:
    """How a text decoder is written as GGUF."""

    architecture: str
    config: Any
    """The configuration of the text decoder."""
    deepstack: int = 0
    """Layers that get image features of their own."""

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

    def rope(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.config.rope_parameters
        return found

    @property
    def dimensions(self) -> dict[str, int]:
        """Return what of GgufShape does not depend on the kind of file."""
        width = self.config.hidden_size * (1 + self.deepstack)
        return {"width": width, "inner": self.config.intermediate_size, "heads": self.heads}

    def add_metadata(self, writer: Any, words: int) -> None:
        """Write the metadata of the decoder to a GGUFWriter; `words`: rows of its embedding."""
        config, rope = self.config, self.rope()
        writer.add_block_count(config.num_hidden_layers)
        writer.add_context_length(config.max_position_embeddings)
        writer.add_embedding_length(config.hidden_size)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(self.heads)
        writer.add_head_count_kv(self.kv_heads)
        writer.add_key_length(self.head_size)
        writer.add_value_length(self.head_size)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_freq_base(rope["rope_theta"])
        writer.add_rope_dimension_count(self.head_size)
        if sections := list(rope.get("mrope_section") or ()):
            by_order = self.architecture in BY_ORDER
            writer.add_rope_dimension_sections([0, *sections] if by_order else [*sections, 0])
        if self.deepstack:
            writer.add_uint32(f"{self.architecture}.n_deepstack_layers", self.deepstack)
        writer.add_vocab_size(words)

    def order_of(self, path: str) -> Order | None:
        """Return what changes the order of a tensor's rows, or None. llama.cpp rotates neighbouring
        dimensions of architecture `llama`, transformers those half a head apart."""
        if self.architecture != "llama":
            return None
        for name, heads in (("q_proj", self.heads), ("k_proj", self.kv_heads)):
            if f".{name}." in path:
                return partial(interleaved, heads=heads)
        return None


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Return rows [heads x size, ...] with the two halves of each head interleaved."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def mapping_of(config: Any, name: str) -> TextMapping:
    """Return the mapping of a model's text decoder. Raises UsageError for a model that is not
    mapped; `name` is what the user called it."""
    text = config.get_text_config(decoder=True)
    if config.model_type not in FAMILIES or text.model_type not in ARCHITECTURES:
        raise refused(name, f"{config.model_type} with a {text.model_type} decoder is not mapped")
    if why := _unmapped(text):
        raise refused(name, why)
    seen = getattr(config, "vision_config", None)
    return TextMapping(
        architecture=ARCHITECTURES[text.model_type],
        config=text,
        deepstack=len(getattr(seen, "deepstack_visual_indexes", None) or ()),
    )


def refused(name: str, why: str) -> UsageError:
    """Return the error about a model that cannot be written as GGUF."""
    return UsageError(
        f"{name} cannot be written as GGUF: {why}",
        hint="Use --to nf4 or int8; docs/gguf.md lists what is mapped",
    )


def _unmapped(text: Any) -> str:
    """Return what of a text configuration is not mapped; empty if all is."""
    rope = text.rope_parameters or {}
    if rope.get("rope_type", "default") != "default":
        return f"its rotary positions are scaled ({rope['rope_type']})"
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        return "only a part of its heads is rotated"
    if text.hidden_act not in SILU:
        return f"its MLP uses {text.hidden_act}"
    kinds = set(getattr(text, "layer_types", None) or ())
    window = getattr(text, "sliding_window", None) if not kinds else None
    if window or kinds - {"full_attention"}:
        return "its attention has a sliding window"
    return ""
