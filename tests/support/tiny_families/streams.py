"""Families that take patches of images and videos through towers of their own, in tiny sizes."""

from typing import Any

import torch

from tests.support.tiny_families.parts import (
    AUDIO,
    IMAGE,
    NONE,
    TOKENS,
    VIDEO,
    Built,
    both,
    finish,
    hf,
    small,
    text,
)
from tests.support.tiny_families.shared import LATENT, streamed

MUSE: dict[str, Any] = small(
    patch_size=4,
    pos_emb_height=4,
    pos_emb_width=4,
    patch_temporal=2,
    merge_size=2,
    max_position_embeddings=64,
    layer_types=["window_attention", "full_attention"],
)


@both("muse_glimmer")
def muse_glimmer(rows: int, video: bool) -> Built:
    config = hf.MuseGlimmerConfig(
        text_config=text(
            sliding_window=64,
            layer_types=["sliding_attention", "full_attention"],
            layer_rope_theta=[10000.0, 0],
        ),
        vision_config=dict(MUSE),
        out_hidden_size=128,
        projector_hidden_size=32,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
    )
    return streamed(config, "MuseGlimmerForConditionalGeneration", rows, video, types=None)


@both("muse_spark")
def muse_spark(rows: int, video: bool) -> Built:
    config = hf.MuseSparkConfig(
        text_config=text(
            sliding_window=64,
            layer_types=["sliding_attention", "full_attention"],
            layer_rope_theta=[10000.0, 0],
            moe_intermediate_size=16,
            num_local_experts=4,
            num_experts_per_tok=2,
            moe_hidden_size=32,
            mlp_layer_types=["dense", "sparse"],
        ),
        vision_config=dict(MUSE),
        out_hidden_size=128,
        projector_hidden_size=32,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        audio_token_id=AUDIO,
        audio_config=dict(
            patch_sizes=[2, 2],
            hidden_sizes=[16, 32],
            depths=[1, 1],
            num_hidden_layers=2,
            out_hidden_size=32,
        ),
    )
    return streamed(config, "MuseSparkForConditionalGeneration", rows, video, types=None)


@both("dots3_note")
def dots3_note(rows: int, video: bool) -> Built:
    config = hf.Dots3NoteConfig(
        text_config=text(
            **LATENT,
            qk_rope_head_dim=8,
            head_dim=16,
            mlp_layer_types=["dense", "sparse"],
            index_topk=64,
            index_head_dim=16,
            index_n_heads=2,
            layer_types=["indexed_attention", "sliding_attention"],
            sliding_window=16,
            shared_experts_intermediate_size=16,
            per_layer_config={},
            rope_parameters={
                "sliding_attention": {
                    "rope_type": "default",
                    "rope_theta": 50000.0,
                    "partial_rotary_factor": 0.5,
                },
                "indexed_attention": {
                    "rope_type": "default",
                    "rope_theta": 80000.0,
                    "partial_rotary_factor": 0.5,
                },
            },
        ),
        vision_config=small(
            patch_size=4,
            moe_intermediate_size=16,
            spatial_merge_size=2,
            mlp_layer_types=["dense", "sparse"],
            num_local_experts=4,
            num_experts_per_tok=2,
            adapter_in_dim=32,
            adapter_out_dim=32,
            adapter_merge_size=2,
            per_layer_config={},
        ),
        audio_config=dict(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=4,
            head_dim=8,
            downsample_hidden_size=8,
            adapter_input_size=32,
            adapter_out_dim=32,
            conv_output_size=128,
            feature_size=16,
        ),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        audio_token_id=AUDIO,
    )
    return streamed(config, "Dots3NoteForConditionalGeneration", rows, video, depth=1, types=None)


@both("kimi_k25")
def kimi_k25(rows: int, video: bool) -> Built:
    config = hf.Kimi_K25Config(
        text_config=text(
            "deepseek_v3", **LATENT, qk_rope_head_dim=8, head_dim=NONE, first_k_dense_replace=1
        ),
        vision_config=small(patch_size=4, pos_emb_height=4, pos_emb_width=4, pos_emb_time=4),
        projection_hidden_size=32,
        **TOKENS,
    )
    grid = torch.tensor([[1, 4, 4]] * rows)
    s = "_videos" if video else ""
    return finish(
        hf.Kimi_K25ForConditionalGeneration(config),
        {
            "pixel_values" + s: torch.randn(int(grid.prod(-1).sum()), 3, 4, 4),
            ("video" if video else "image") + "_grid_thw": grid,
        },
        rows,
        video,
    )


@both("minimax_m3_vl")
def minimax_m3_vl(rows: int, video: bool) -> Built:
    config = hf.MiniMaxM3VLConfig(
        text_config=text(
            num_local_experts=4,
            num_experts_per_tok=2,
            dense_intermediate_size=64,
            shared_intermediate_size=16,
            rotary_dim=8,
            mlp_layer_types=["dense", "sparse"],
            index_n_heads=2,
            index_head_dim=8,
            index_block_size=16,
            index_topk_blocks=4,
            layer_types=["full_attention", "minimax_m3_sparse"],
        ),
        vision_config=dict(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=32,
            patch_size=4,
        ),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        projector_hidden_size=32,
    )
    return streamed(config, "MiniMaxM3SparseForConditionalGeneration", rows, video, types=None)
