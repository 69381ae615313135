"""Tiny CLIP checkpoints with random weights."""

from pathlib import Path
from typing import Any

import torch

from tests.support.builders.words import hf, tokenizer

SIDE, PATCH, WORDS = 32, 8, 99
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "projection_dim": 24,
}
TEXT = {
    **SIZES,
    "vocab_size": WORDS,
    "max_position_embeddings": 40,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
VISION = {**SIZES, "image_size": SIDE, "patch_size": PATCH}


def save_clip(
    folder: Path, image_processor: Any = None, texts: dict[str, Any] | None = None, **vision: Any
) -> Path:
    """A tiny CLIP checkpoint with its processor, as a hub has them; `texts` changes its text tower,
    `vision` its vision tower and how wide vectors are."""
    words = tokenizer((), "")
    words.padding_side = "right"
    text = {**TEXT, "vocab_size": len(words), "bos_token_id": 0, "eos_token_id": 1, **(texts or {})}
    torch.manual_seed(0)
    seen = {**VISION, **vision}
    wide = seen["projection_dim"]
    config = hf.CLIPConfig(text_config=text, vision_config=seen, projection_dim=wide)
    model = hf.CLIPModel(config).eval()
    model.save_pretrained(folder)
    square = {"height": config.vision_config.image_size, "width": config.vision_config.image_size}
    part = image_processor or hf.CLIPImageProcessor(
        size={"shortest_edge": square["height"]}, crop_size=square
    )
    hf.CLIPProcessor(image_processor=part, tokenizer=words).save_pretrained(folder)
    return folder
