"""Maps the tensor names of EVA-CLIP's original files to those of its hub repositories. Reads no
file.

Neither names nor shapes show an encoder's number of heads or the place of its norms. Both are known
for the published widths.
"""

import logging
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping

import torch

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
    names = list(_named(name))
    parts = tensor.chunk(3) if len(names) > 1 else (_shaped(names[0], tensor),) if names else ()
    return zip(names, parts, strict=True)


def _named(name: str) -> Iterator[str]:
    """Yield the converted names of a tensor: three of a fused one, none of an unknown one."""
    for pattern, layers in FUSED:
        if match := re.match(pattern, name):
            yield from (f"{layers}{match[1]}.self_attn.{part}_proj.{match[2]}" for part in "qkv")
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
    head_width, is_post_norm = ENCODERS.get(width, (TEXT_HEAD, False))
    vision = {
        "hidden_size": width,
        "intermediate_size": shapes["visual.blocks.0.mlp.fc1.weight"][0],
        "num_hidden_layers": _layers(BLOCK, shapes),
        "num_attention_heads": max(1, width // head_width),
        "image_size": math.isqrt(shapes["visual.pos_embed"][-2] - 1) * patch,
        "patch_size": patch,
        "post_layernorm": is_post_norm,
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
    return 1 + max(int(match[1]) for name in shapes if (match := re.match(pattern, name)))
