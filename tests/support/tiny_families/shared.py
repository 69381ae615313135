"""Inputs and sizes that several families have in common."""

from collections.abc import Callable
from typing import Any

import torch

from tests.support.tiny_families.parts import (
    MROPE,
    NONE,
    Built,
    both,
    config_of,
    finish,
    model_of,
    noise,
    small,
    text,
)

TURNING: dict[str, Any] = {**MROPE, "mrope_interleaved": True, "partial_rotary_factor": 1.0}
HYBRID: dict[str, Any] = dict(rope_parameters=TURNING, linear_conv_kernel_dim=2)
HYBRID |= dict(linear_key_head_dim=8, linear_value_head_dim=8, linear_num_key_heads=2)
HYBRID |= dict(linear_num_value_heads=4, layer_types=["linear_attention", "full_attention"])
"""Linear and full attention in turn."""
GROUPED: dict[str, Any] = dict(moe_intermediate_size=16, n_shared_experts=1, n_routed_experts=4)
GROUPED |= dict(num_experts_per_tok=2, n_group=1, topk_group=1)
"""A mixture of experts in groups."""
LATENT: dict[str, Any] = dict(**GROUPED, num_key_value_heads=4, kv_lora_rank=8, q_lora_rank=8)
LATENT |= dict(v_head_dim=8, qk_nope_head_dim=8)
"""Latent attention over a mixture of experts."""
ROUTED: dict[str, Any] = dict(moe_intermediate_size=16, num_local_experts=4, num_experts_per_tok=2)
"""A mixture of experts."""
EXPERTS: dict[str, Any] = dict(moe_intermediate_size=16, shared_expert_intermediate_size=16)
EXPERTS |= dict(num_experts=4, num_experts_per_tok=2)
INDEXED: dict[str, Any] = {"index_topk": 64, "index_head_dim": 8, "index_n_heads": 2}
"""Attention to what an index chooses."""
SPARSE: dict[str, Any] = {"mlp_layer_types": ["dense", "sparse"]}
SLIDING: dict[str, Any] = {"layer_types": ["sliding_attention", "full_attention"]}
SLIDING |= {"sliding_window": 16}
QWEN_2: dict[str, Any] = text("qwen2", head_dim=NONE)
OPT: dict[str, Any] = dict(model_type="opt", hidden_size=32, num_hidden_layers=2, ffn_dim=64)
OPT |= dict(num_attention_heads=4, max_position_embeddings=512, word_embed_proj_dim=32)
BART: dict[str, Any] = dict(model_type="bart", d_model=32, encoder_layers=2, decoder_layers=2)
BART |= dict(encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=64)
BART |= dict(decoder_ffn_dim=64, max_position_embeddings=512, decoder_start_token_id=1)
BART |= dict(forced_eos_token_id=None)
DAVIT: dict[str, Any] = dict(depths=[1, 1, 1, 1], patch_size=[7, 3, 3, 3], window_size=4)
DAVIT |= dict(patch_stride=[4, 2, 2, 2], patch_padding=[3, 1, 1, 1], drop_path_rate=0.0)
DAVIT |= dict(patch_prenorm=[False, True, True, True], embed_dim=[8, 8, 16, 32], projection_dim=32)
DAVIT |= dict(num_heads=[2, 2, 2, 2], num_groups=[2, 2, 2, 2], max_temporal_embeddings=4)
DAVIT |= dict(max_position_embeddings=8)
_inside: dict[str, Any] = dict(embed_dim=32, depth=2, num_heads=4, img_size=[32, 32], patch_size=8)
_inside |= dict(global_pool="", use_post_transformer_norm=False, init_values=0.1)
_inside |= dict(ref_feat_shape=[4, 4])
PERCEIVING: dict[str, Any] = dict(model_type="timm_wrapper", do_pooling=False, num_classes=0)
PERCEIVING |= dict(architecture="vit_pe_core_tiny_patch16_384", model_args=_inside)
"""A tower of a package of its own, without a pooled output."""
LLAMA4_TEXT: dict[str, Any] = dict(intermediate_size_mlp=64, num_local_experts=2, moe_layers=[1])
LLAMA4_TEXT |= dict(num_experts_per_tok=1, attention_chunk_size=64)
PROJECTED = dict.fromkeys(("vision_output_dim", "projector_input_dim", "projector_output_dim"), 32)
LLAMA4_TOWER = small(intermediate_size=128, image_size=32, patch_size=8, **PROJECTED)
PIX2STRUCT_TEXT = dict(hidden_size=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
PIX2STRUCT_TOWER = small(intermediate_size=NONE, d_kv=8, d_ff=64)
SMALL: dict[str, Any] = {"image_size": 16, "intermediate_size": 64}
SAM: dict[str, Any] = dict(hidden_size=32, output_channels=16, num_hidden_layers=2, image_size=64)
SAM |= dict(num_attention_heads=4, patch_size=4, window_size=4, global_attn_indexes=[1])
SAM |= dict(mlp_dim=64, mlp_ratio=2.0)


def stream(rows: int, video: bool, patch: int = 4, depth: int = 2) -> dict[str, torch.Tensor]:
    """Patches of all media one after the other, and the grid of each: two steps of a video."""
    grid = torch.tensor([[2 if video else 1, 4, 4]] * rows)
    pixels = torch.randn(int(grid.prod(-1).sum()), 3 * depth * patch * patch)
    if video:
        return {"pixel_values_videos": pixels, "video_grid_thw": grid}
    return {"pixel_values": pixels, "image_grid_thw": grid}


def streaming(
    name: str,
    prefix: str,
    *given: Any,
    cls: str = "",
    depth: int = 2,
    types: str | None = "mm_token_type_ids",
    frames: int = 0,
    extra: Callable[[torch.Tensor, bool], dict[str, Any]] | None = None,
    **config: Any,
) -> None:
    """Register a family that takes a stream of patches; `frames` groups of placeholders in a
    video. `extra` makes more inputs of the ids."""

    def build(rows: int, video: bool) -> Built:
        return finish(
            model_of(config_of(prefix, *given, **config), cls),
            stream(rows, video, 4, depth),
            rows,
            video,
            types=types,
            frames=frames if video else 0,
            extra=(lambda ids: extra(ids, video)) if extra else None,
        )

    both(name)(build)


def sized(rows: int) -> dict[str, torch.Tensor]:
    """Pictures with their sizes."""
    return {"pixel_values": noise(rows, 16), "image_sizes": torch.tensor([[16, 16]] * rows)}


def tiles(rows: int) -> dict[str, torch.Tensor]:
    """Tiles of pictures and the pictures' sizes."""
    pixels = torch.randn(rows, 5, 3, 32, 32)
    return {"pixel_values": pixels, "image_sizes": torch.tensor([[60, 50]] * rows)}


def pixtral() -> dict[str, Any]:
    return small(model_type="pixtral", image_size=64, patch_size=4, head_dim=8)


def qformer(model_type: str, **changes: Any) -> dict[str, Any]:
    sizes = dict(vocab_size=120, max_position_embeddings=64, cross_attention_frequency=1)
    return small(model_type=model_type, **{**sizes, "encoder_hidden_size": 32, **changes})


def blip_config(**marks: Any) -> Any:
    shown = {"projection_dim": 32, "image_text_hidden_size": 32}
    text = small(encoder_hidden_size=32, projection_dim=32, **marks)
    vision = small(projection_dim=32, image_size=32, patch_size=8)
    return config_of("Blip", text, vision, **shown)


def mllama_tower(**changes: Any) -> dict[str, Any]:
    sizes: dict[str, Any] = dict(num_attention_heads=NONE, num_global_layers=1, attention_heads=4)
    sizes |= dict(vision_output_dim=64, image_size=32, patch_size=8)
    return small(intermediate_layers_indices=[0], **sizes, **changes)


def timm_tower(architecture: str, **changes: Any) -> dict[str, Any]:
    """One of timm's architectures, made small."""
    sizes = {"do_pooling": False, "num_classes": 2, "hidden_size": 32, "model_args": {}}
    return {"model_type": "timm_wrapper", "architecture": architecture, **sizes, **changes}
