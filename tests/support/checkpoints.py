"""Tiny checkpoints with random weights for the processors of `processors.py`; needs no network."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support import checkpoints_whole as other
from tests.support.families import decisive, hf, made_once, text_config
from tests.support.processors import KINDS
from tests.support.tiny_families.parts import (
    MROPE,
    NONE,
    PINPOINTS,
    patches,
    tower,
)
from tests.support.tiny_families.shared import OPT, PERCEIVING, qformer

ROPE = {"rope_type": "default", "rope_theta": 10000.0}


def _ids(words: Any, **names: str) -> dict[str, int]:
    return {name: words.convert_tokens_to_ids(word) for name, word in names.items()}


def _text(words: Any, **changes: Any) -> dict[str, Any]:
    return text_config(vocab_size=len(words), eos_token_id=1, **changes)


def _blip_2(words: Any) -> Any:
    config = hf.Blip2Config(
        vision_config=tower("blip_2_vision_model", num_channels=NONE, qkv_bias=True),
        qformer_config=qformer("blip_2_qformer", max_position_embeddings=NONE),
        text_config={**OPT, **other.marks(words)},
        num_query_tokens=4,
        image_token_index=words.convert_tokens_to_ids("<image>"),
    )
    return hf.Blip2ForConditionalGeneration(config)


def _gemma3(words: Any) -> Any:
    layers = {
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"],
        "query_pre_attn_scalar": 8,
        "head_dim": 8,
        "rope_parameters": {"sliding_attention": ROPE, "full_attention": ROPE},
    }
    config = hf.Gemma3Config(
        tie_word_embeddings=False,
        text_config=_text(words, **layers),
        vision_config=tower("siglip_vision_model", vision_use_head=False),
        mm_tokens_per_image=4,
        **_ids(words, boi_token_index="<boi>", eoi_token_index="<eoi>", image_token_id="<soft>"),
    )
    return hf.Gemma3ForConditionalGeneration(config)


def _git(words: Any) -> Any:
    config = hf.GitConfig(
        vision_config=tower("git_vision_model"),
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        bos_token_id=2,
        eos_token_id=1,
        pad_token_id=0,
    )
    return hf.GitForCausalLM(config)


def _glm4v(words: Any) -> Any:
    tokens = _ids(
        words,
        image_token_id="<|image|>",
        video_token_id="<|video|>",
        image_start_token_id="<|begin_of_image|>",
        image_end_token_id="<|end_of_image|>",
        video_start_token_id="<|begin_of_video|>",
        video_end_token_id="<|end_of_video|>",
    )
    config = hf.Glm4vConfig(
        text_config=_text(words, rope_parameters=MROPE),
        vision_config=patches(image_size=16, intermediate_size=64),
        **tokens,
    )
    return hf.Glm4vForConditionalGeneration(config)


def _internvl(words: Any) -> Any:
    vision = tower("internvl_vision", image_size=[32, 32], patch_size=[8, 8])
    config = hf.InternVLConfig(
        vision_config=vision,
        text_config=_text(words, model_type="qwen2"),
        image_seq_length=4,
        **_ids(words, image_token_id="<IMG_CONTEXT>"),
    )
    return hf.InternVLForConditionalGeneration(config)


def _llava_next(words: Any) -> Any:
    config = hf.LlavaNextConfig(
        vision_config=tower("clip_vision_model", projection_dim=32),
        text_config=_text(words, model_type="llama"),
        image_grid_pinpoints=PINPOINTS,
        **_ids(words, image_token_index="<image>"),
    )
    return hf.LlavaNextForConditionalGeneration(config)


def _paligemma(words: Any) -> Any:
    config = hf.PaliGemmaConfig(
        tie_word_embeddings=False,
        text_config=_text(words, model_type="gemma", num_key_value_heads=1, head_dim=8),
        vision_config=tower("siglip_vision_model", vision_use_head=False, projection_dim=32),
        projection_dim=32,
        hidden_size=32,
        **_ids(words, image_token_index="<image>"),
    )
    return hf.PaliGemmaForConditionalGeneration(config)


def _perception_lm(words: Any) -> Any:
    config = hf.PerceptionLMConfig(
        vision_config=PERCEIVING,
        text_config=_text(words, model_type="llama"),
        projector_pooling_ratio=2,
        **_ids(words, image_token_id="<|image|>", video_token_id="<|video|>"),
    )
    return hf.PerceptionLMForConditionalGeneration(config)


MODELS: dict[str, Callable[[Any], Any]] = {
    "blip": other.blip,
    "blip_2": _blip_2,
    "florence2": other.florence2,
    "gemma3": _gemma3,
    "git": _git,
    "glm4v": _glm4v,
    "instructblip": other.instructblip,
    "instructblipvideo": other.instructblipvideo,
    "internvl": _internvl,
    "llama4": other.llama4,
    "llava_next": _llava_next,
    "mllama": other.mllama,
    "paligemma": _paligemma,
    "perception_lm": _perception_lm,
    "pix2struct": other.pix2struct,
}
"""Family -> makes its tiny model for the processor's tokenizer."""


@made_once
def whole_checkpoint(folder: Path, family: str) -> None:
    """The family's model and processor."""
    processor = KINDS[family].build()
    model = decisive(MODELS[family](processor.tokenizer))
    model.generation_config.eos_token_id = 1
    model.generation_config.pad_token_id = 0
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
