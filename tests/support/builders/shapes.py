"""Checkpoints with random weights by name, of real families: few layers of the usual width, half a
gigabyte, with processors of the usual sizes. Some belong to families in which not every layer keeps
every token in the KV cache; the vision towers of those are small."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.builders import card_models as card_models
from tests.support.builders import processors as plan_processors
from tests.support.builders.card_models import hf
from tests.support.builders.words import (
    LLAVA_TEMPLATE,
    QWEN_MARKS,
    QWEN_TEMPLATE,
    template,
    tokenizer,
    words,
)

VOCABULARY = 96000
WINDOWED = ["sliding_attention", "full_attention"]
END = {"eos_token_id": 1, "pad_token_id": 0}


def text_settings(**changes: Any) -> dict[str, Any]:
    base = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 4,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 16384,
        "bos_token_id": None,
        **END,
    }
    return {**base, **changes}


def llava() -> tuple[Any, Any]:
    """Frames of 336 pixels, 576 tokens each; attention with all heads."""
    made = tokenizer(("<image>", "<s>"), LLAVA_TEMPLATE, bos="<s>")
    config = hf.LlavaConfig(
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 3,
            "num_attention_heads": 16,
            "image_size": 336,
            "patch_size": 14,
            "projection_dim": 768,
        },
        text_config=text_settings(model_type="llama"),
        image_token_index=made.convert_tokens_to_ids("<image>"),
    )
    return hf.LlavaForConditionalGeneration(config), plan_processors.llava(made)


def qwen_words() -> tuple[Any, dict[str, int]]:
    """The tokenizer, and the ids of what stands for pictures."""
    made = tokenizer(QWEN_MARKS, QWEN_TEMPLATE)
    names = ("image_pad", "video_pad", "vision_start", "vision_end")
    kinds = ("image_token", "video_token", "vision_start_token", "vision_end_token")
    ids = made.convert_tokens_to_ids([f"<|{name}|>" for name in names])
    return made, {f"{kind}_id": number for kind, number in zip(kinds, ids, strict=True)}


def qwen(layers: int = 4, inside: int = 5504) -> tuple[Any, Any]:
    """Frames as large as they are, windowed attention, few heads of keys. `inside`: width of an
    MLP."""
    made, ids = qwen_words()
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]}
    config = hf.Qwen2_5_VLConfig(
        text_config=text_settings(
            num_hidden_layers=layers,
            num_key_value_heads=4,
            intermediate_size=inside,
            rope_parameters=rope,
            hidden_act="silu",
        ),
        vision_config={
            "depth": 3,
            "hidden_size": 1024,
            "intermediate_size": 2736,
            "num_heads": 16,
            "out_hidden_size": 1024,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": [1],
        },
        **ids,
    )
    common = {"patch_size": 14, "temporal_patch_size": 2, "merge_size": 2}
    size = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280}
    frames = {"shortest_edge": 128 * 28 * 28, "longest_edge": 64 * 768 * 28 * 28}
    processor = hf.Qwen2_5_VLProcessor(
        image_processor=hf.Qwen2VLImageProcessor(size=size, **common),
        tokenizer=made,
        video_processor=hf.Qwen2VLVideoProcessor(
            size=frames, min_frames=2, max_frames=64, **common
        ),
        chat_template=QWEN_TEMPLATE,
    )
    return hf.Qwen2_5_VLForConditionalGeneration(config), processor


def smolvlm() -> tuple[Any, Any]:
    """Frames of 512 pixels, 64 tokens each after a pixel shuffle; a small tower."""
    vision = {
        "model_type": "smolvlm_vision",
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 3,
        "num_attention_heads": 12,
        "image_size": 512,
        "patch_size": 16,
    }
    processor, ids = card_models.smolvlm({"vision_config": vision, "scale_factor": 4})
    config = hf.SmolVLMConfig(
        vision_config=vision,
        text_config=text_settings(
            model_type="llama",
            hidden_size=960,
            intermediate_size=2560,
            num_attention_heads=15,
            num_key_value_heads=5,
            num_hidden_layers=8,
        ),
        scale_factor=4,
        **ids,
    )
    return hf.SmolVLMForConditionalGeneration(config), processor


def mllama() -> tuple[Any, Any]:
    """Run whole: pictures in tiles are read by layers of the decoder's own."""
    made = words("<|image|>", "<|python_tag|>")
    square = {"height": 448, "width": 448}
    processor = hf.MllamaProcessor(
        hf.MllamaImageProcessor(size=square, max_image_tiles=4),
        made,
        chat_template="{{ bos_token }}" + template("<|image|>"),
    )
    config = hf.MllamaConfig(
        text_config=text_settings(
            cross_attention_layers=[1, 3], num_key_value_heads=4, bos_token_id=2
        ),
        vision_config={
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 4,
            "num_global_layers": 1,
            "attention_heads": 12,
            "vision_output_dim": 1536,
            "image_size": 448,
            "patch_size": 14,
            "max_num_tiles": 4,
            "intermediate_layers_indices": [3],
        },
        image_token_index=made.convert_tokens_to_ids("<|image|>"),
    )
    return hf.MllamaForConditionalGeneration(config), processor


def gemma() -> tuple[Any, Any]:
    """Frames of 256 tokens each; three of four layers see a window."""
    processor, ids = card_models.gemma3({"vision_config": {"image_size": 448}})
    ropes = {name: {"rope_type": "default", "rope_theta": 1e6} for name in WINDOWED}
    config = hf.Gemma3Config(
        text_config=text_settings(
            num_key_value_heads=8,
            head_dim=64,
            query_pre_attn_scalar=64,
            sliding_window=512,
            layer_types=[*WINDOWED[:1] * 3, WINDOWED[1]],
            rope_parameters=ropes,
        ),
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 384,
            "intermediate_size": 1536,
            "num_hidden_layers": 2,
            "num_attention_heads": 6,
            "image_size": 448,
            "patch_size": 14,
            "vision_use_head": False,
        },
        mm_tokens_per_image=256,
        **ids,
    )
    return hf.Gemma3ForConditionalGeneration(config), processor


def hybrid() -> tuple[Any, Any]:
    """Frames as large as they are; three of four layers remember a row in states."""
    made, ids = qwen_words()
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_interleaved": True}
    config = hf.Qwen3_5Config(
        text_config=text_settings(
            num_hidden_layers=8,
            num_key_value_heads=4,
            head_dim=64,
            linear_num_key_heads=8,
            linear_num_value_heads=16,
            rope_parameters={**rope, "mrope_section": [3, 3, 2], "partial_rotary_factor": 0.25},
        ),
        vision_config={
            "depth": 2,
            "hidden_size": 384,
            "intermediate_size": 1536,
            "num_heads": 6,
            "out_hidden_size": 1024,
            "num_position_embeddings": 576,
        },
        **ids,
    )
    common = {"patch_size": 16, "temporal_patch_size": 2, "merge_size": 2}
    size = {"shortest_edge": 64 * 64, "longest_edge": 64 * 448 * 448}
    processor = hf.Qwen3VLProcessor(
        image_processor=hf.Qwen2VLImageProcessor(size=size, **common),
        tokenizer=made,
        video_processor=hf.Qwen3VLVideoProcessor(
            size=size, min_frames=2, max_frames=64, cap_pixels_per_frame=False, **common
        ),
        chat_template=QWEN_TEMPLATE,
    )
    return hf.Qwen3_5ForConditionalGeneration(config), processor


SHAPES: dict[str, Callable[[], tuple[Any, Any]]] = {
    "llava": llava,
    "qwen2.5-vl": qwen,
    "smolvlm": smolvlm,
    "mllama": mllama,
    "gemma3": gemma,
    "qwen3.5": hybrid,
    "0.5b": lambda: qwen(layers=12, inside=8192),  # of language; most of it in matrices
}


def build(folder: Path, name: str, tokens: int) -> Path:
    """Write a checkpoint of that shape in 16 bit; a caption has so many tokens."""
    import torch

    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        model, processor = SHAPES[name]()
    finally:
        torch.set_default_dtype(default)
    model.generation_config.update(min_new_tokens=tokens, **END)
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="2GB")
    processor.save_pretrained(folder)
    return folder
