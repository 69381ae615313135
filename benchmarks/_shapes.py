"""Checkpoints with random weights by name. Some belong to families in which not every layer keeps
every token in the KV cache; the vision towers of those are small."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks._shapes_plain import (
    END,
    llava,
    mllama,
    qwen,
    qwen_words,
    smolvlm,
    text_settings,
)
from scripts import card_models
from scripts.card_models import hf
from tests.support.families import QWEN_TEMPLATE

WINDOWED = ["sliding_attention", "full_attention"]


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
