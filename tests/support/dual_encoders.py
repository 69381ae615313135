"""Tiny dual encoders with random weights, one of every class that transformers has for zero-shot
labels, and their inputs; needs no network."""

from pathlib import Path
from typing import Any

import torch

from tests.support.families import hf, tokenizer
from tests.support.tiny_families.parts import small

SIDE, PATCH, WORDS = 32, 8, 99
TEXT = small(
    projection_dim=24,
    vocab_size=WORDS,
    max_position_embeddings=40,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)
VISION = small(projection_dim=24, image_size=SIDE, patch_size=PATCH)
CONVOLVING = {
    "image_size": SIDE,
    "width_coefficient": 1.0,
    "depth_coefficient": 1.0,
    "depth_divisor": 8,
    "kernel_sizes": [3, 3],
    "in_channels": [32, 16],
    "out_channels": [16, 32],
    "strides": [1, 2],
    "num_block_repeats": [1, 1],
    "expand_ratios": [1, 2],
    "depthwise_padding": [],
    "hidden_dim": 32,
}


def names() -> dict[str, str]:
    """Type of a model → its class, of all that transformers labels pictures with."""
    from transformers.models.auto import modeling_auto as auto

    return dict(auto.MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES)


def config_of(name: str) -> Any:
    cls = getattr(hf, names()[name]).config_class
    two = {"text_config": TEXT, "vision_config": VISION, "projection_dim": 24}
    if name == "align":
        two = {**two, "vision_config": CONVOLVING, "projection_dim": 32}
    elif name == "blip":
        two |= {"text_config": {**TEXT, "encoder_hidden_size": 32}, "image_text_hidden_size": 24}
    elif name == "altclip":
        two["text_config"] = {**TEXT, "project_dim": 24}
    elif name == "clipseg":
        two |= {"extract_layers": [0, 1], "reduce_dim": 16}
    elif name in ("siglip", "siglip2"):
        two["text_config"] = {**TEXT, "projection_size": 32}
        two.pop("projection_dim")
    elif name == "tipsv2":
        two.pop("projection_dim")
    if name == "siglip2":
        two["vision_config"] = {**VISION, "num_patches": (SIDE // PATCH) ** 2}
    return cls(**two)


def tiny(name: str) -> Any:
    """A model of that class; weights that begin at nothing are drawn too."""
    torch.manual_seed(0)
    model = getattr(hf, names()[name])(config_of(name)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 0 or not weight.abs().sum():
                torch.nn.init.normal_(weight, std=0.5)
    return model


def pictures(name: str, count: int = 3) -> dict[str, Any]:
    """Pictures as the class takes them."""
    if name != "siglip2":
        return {"pixel_values": torch.randn(count, 3, SIDE, SIDE)}
    side = SIDE // PATCH
    return {
        "pixel_values": torch.randn(count, side * side, 3 * PATCH * PATCH),
        "pixel_attention_mask": torch.ones(count, side * side, dtype=torch.long),
        "spatial_shapes": torch.tensor([[side, side]] * count),
    }


def texts(count: int = 2) -> dict[str, Any]:
    ids = torch.randint(3, 90, (count, 8))
    ids[:, 0], ids[:, -1] = 1, 2
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def save(name: str, folder: Path) -> Path:
    """A tiny checkpoint of a class with its processor, as a hub has them."""
    square = {"height": SIDE, "width": SIDE}
    kinds: dict[str, tuple[Any, Any]] = {
        "align": (hf.AlignProcessor, hf.EfficientNetImageProcessor(size=square)),
        "altclip": (
            hf.AltCLIPProcessor,
            hf.CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=square),
        ),
        "blip": (hf.BlipProcessor, hf.BlipImageProcessor(size=square)),
        "chinese_clip": (
            hf.ChineseCLIPProcessor,
            hf.ChineseCLIPImageProcessor(size=square, crop_size=square),
        ),
        "clipseg": (hf.CLIPSegProcessor, hf.ViTImageProcessor(size=square)),
        "siglip": (hf.SiglipProcessor, hf.SiglipImageProcessor(size=square)),
        "siglip2": (hf.Siglip2Processor, hf.Siglip2ImageProcessor()),
    }
    cls, part = kinds[name]
    torch.manual_seed(0)
    config, words = config_of(name), tokenizer(("<unk>",) if name == "siglip2" else (), "")
    config.text_config.vocab_size = len(words)
    if name == "siglip2":  # of as many pictures' pieces as its processor makes by itself
        config.vision_config.patch_size, config.vision_config.num_patches = 16, 256
    getattr(hf, names()[name])(config).eval().save_pretrained(folder)
    cls(image_processor=part, tokenizer=words).save_pretrained(folder)
    return folder


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
