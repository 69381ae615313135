"""Families of the Qwen line, which take a stream of patches and their grids, in tiny sizes."""

from typing import Any

import torch

from tests.support.tiny_families.parts import (
    AUDIO,
    END,
    IMAGE,
    INTERLEAVED,
    MROPE,
    NONE,
    START,
    TOKENS,
    VIDEO,
    Built,
    both,
    hf,
    patches,
    small,
    text,
)
from tests.support.tiny_families.shared import EXPERTS, HYBRID, streamed


def seconds(ids: Any) -> dict[str, Any]:
    return dict(second_per_grid_ts=torch.tensor([1.0] * ids.shape[0]))


@both("qwen2_vl")
def qwen2_vl(rows: int, video: bool) -> Built:
    config = hf.Qwen2VLConfig(
        text_config=text(rope_parameters=MROPE, head_dim=NONE),
        vision_config=dict(
            depth=3,
            embed_dim=32,
            hidden_size=32,
            mlp_ratio=2,
            num_heads=4,
            patch_size=4,
            spatial_merge_size=2,
            temporal_patch_size=2,
        ),
        **TOKENS,
    )
    return streamed(config, "Qwen2VLForConditionalGeneration", rows, video)


@both("qwen2_5_vl")
def qwen2_5_vl(rows: int, video: bool) -> Built:
    config = hf.Qwen2_5_VLConfig(
        text_config=text(rope_parameters=MROPE, head_dim=NONE),
        vision_config=patches(window_size=16, fullatt_block_indexes=[1]),
        **TOKENS,
    )
    return streamed(
        config, "Qwen2_5_VLForConditionalGeneration", rows, video, extra=seconds if video else None
    )


@both("qwen3_vl")
def qwen3_vl(rows: int, video: bool) -> Built:
    config = hf.Qwen3VLConfig(
        text_config=text(rope_parameters=INTERLEAVED, num_hidden_layers=3),
        vision_config=patches(num_position_embeddings=16, deepstack_visual_indexes=[0, 1]),
        **TOKENS,
    )
    return streamed(config, "Qwen3VLForConditionalGeneration", rows, video, frames=2)


@both("qwen3_vl_moe")
def qwen3_vl_moe(rows: int, video: bool) -> Built:
    config = hf.Qwen3VLMoeConfig(
        text_config=text(
            rope_parameters=INTERLEAVED,
            num_hidden_layers=3,
            moe_intermediate_size=16,
            num_local_experts=4,
            num_experts=4,
            num_experts_per_tok=2,
            decoder_sparse_step=1,
        ),
        vision_config=patches(num_position_embeddings=16, deepstack_visual_indexes=[0, 1]),
        **TOKENS,
    )
    return streamed(config, "Qwen3VLMoeForConditionalGeneration", rows, video, frames=2)


@both("qwen3_5")
def qwen3_5(rows: int, video: bool) -> Built:
    config = hf.Qwen3_5Config(
        text_config=text(**HYBRID), vision_config=patches(num_position_embeddings=16), **TOKENS
    )
    return streamed(config, "Qwen3_5ForConditionalGeneration", rows, video, frames=2)


@both("qwen3_5_moe")
def qwen3_5_moe(rows: int, video: bool) -> Built:
    config = hf.Qwen3_5MoeConfig(
        text_config=text(**HYBRID, **EXPERTS),
        vision_config=patches(num_position_embeddings=16),
        **TOKENS,
    )
    return streamed(config, "Qwen3_5MoeForConditionalGeneration", rows, video, frames=2)


@both("qwen4_exp")
def qwen4_exp(rows: int, video: bool) -> Built:
    config = hf.Qwen4ExpConfig(
        text_config=text(
            **{
                **HYBRID,
                "layer_types": ["linear_attention", "full_attention"],
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 10000.0,
                    "mrope_section": [2, 1, 1],
                    "mrope_interleaved": True,
                },
            },
            **EXPERTS,
            hc_count=2,
            hc_lowrank=8,
            indexer_n_heads=2,
            indexer_kv_heads=1,
            indexer_head_dim=8,
            indexer_budget=64,
            indexer_compress_ratio=4,
            ple_embed_dim=8,
            ple_layer_ids=[],
        ),
        vision_config=patches(num_position_embeddings=16),
        **TOKENS,
    )
    return streamed(config, "Qwen4ExpForConditionalGeneration", rows, video, frames=2)


@both("cosmos3_omni")
def cosmos3_omni(rows: int, video: bool) -> Built:
    config = hf.Cosmos3OmniConfig(
        text_config=text(rope_parameters=INTERLEAVED, num_hidden_layers=3),
        vision_config=patches(num_position_embeddings=16, deepstack_visual_indexes=[0, 1]),
        **TOKENS,
    )
    return streamed(config, "Cosmos3OmniForConditionalGeneration", rows, video, frames=2)


@both("cosmos3_edge")
def cosmos3_edge(rows: int, video: bool) -> Built:
    config = hf.Cosmos3EdgeConfig(
        text_config=text(rope_parameters=MROPE),
        vision_config=small(patch_size=4, num_patches=16, spatial_merge_size=2),
        projector_hidden_size=64,
        **TOKENS,
    )
    return streamed(config, "Cosmos3EdgeForConditionalGeneration", rows, video, depth=1, frames=2)


@both("exaone4_5")
def exaone4_5(rows: int, video: bool) -> Built:
    config = hf.Exaone4_5_Config(
        text_config=text(
            "exaone4",
            sliding_window=None,
            layer_types=["full_attention"] * 2,
            sliding_window_pattern=NONE,
        ),
        vision_config=patches(window_size=16, fullatt_block_indexes=[1], num_key_value_heads=2),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
    )
    return streamed(config, "Exaone4_5_ForConditionalGeneration", rows, video, types=None)


@both("hyperclovax_vision_v2")
def hyperclovax_vision_v2(rows: int, video: bool) -> Built:
    config = hf.HyperCLOVAXVisionV2Config(
        text_config=text("hyperclovax"),
        vision_config=patches(
            model_type="qwen2_5_vl_vision", window_size=16, fullatt_block_indexes=[1]
        ),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
    )
    return streamed(config, "HyperCLOVAXVisionV2ForConditionalGeneration", rows, video, types=None)


@both("cohere_compass")
def cohere_compass(rows: int, video: bool) -> Built:
    config = hf.CohereCompassConfig(
        text_config=text(
            layer_types=["full_attention"] * 2, rope_parameters={"full_attention": MROPE}
        ),
        vision_config=patches(num_position_embeddings=16, deepstack_visual_indexes=[0, 1]),
        **TOKENS,
    )
    return streamed(config, "CohereCompassForConditionalGeneration", rows, video, frames=2)


@both("qwen2_5_omni_thinker")
def qwen2_5_omni_thinker(rows: int, video: bool) -> Built:
    config = hf.Qwen2_5OmniThinkerConfig(
        text_config=text(rope_parameters=MROPE, head_dim=NONE),
        vision_config=patches(window_size=16, fullatt_block_indexes=[1]),
        audio_config=dict(
            num_mel_bins=20,
            encoder_layers=1,
            encoder_attention_heads=4,
            encoder_ffn_dim=32,
            d_model=32,
            max_source_positions=100,
            n_window=8,
            output_dim=32,
        ),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        audio_token_id=AUDIO,
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        audio_token_index=AUDIO,
        vision_start_token_id=START,
        vision_end_token_id=END,
        audio_start_token_id=92,
        audio_end_token_id=91,
        user_token_id=90,
    )
    return streamed(
        config,
        "Qwen2_5OmniThinkerForConditionalGeneration",
        rows,
        video,
        types=None,
        extra=(lambda ids: dict(video_second_per_grid=torch.ones(ids.shape[0]))) if video else None,
    )


@both("qwen3_omni_moe_thinker")
def qwen3_omni_moe_thinker(rows: int, video: bool) -> Built:
    config = hf.Qwen3OmniMoeThinkerConfig(
        text_config=text(
            rope_parameters=INTERLEAVED,
            num_hidden_layers=3,
            moe_intermediate_size=16,
            num_experts=4,
            num_experts_per_tok=2,
            decoder_sparse_step=1,
        ),
        vision_config=patches(num_position_embeddings=16, deepstack_visual_indexes=[0, 1]),
        audio_config=dict(
            num_mel_bins=20,
            encoder_layers=1,
            encoder_attention_heads=4,
            encoder_ffn_dim=32,
            d_model=32,
            max_source_positions=100,
            n_window=8,
            output_dim=32,
            downsample_hidden_size=8,
        ),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        audio_token_id=AUDIO,
        vision_start_token_id=START,
        vision_end_token_id=END,
        audio_start_token_id=92,
        audio_end_token_id=91,
        user_token_id=90,
    )
    return streamed(
        config,
        "Qwen3OmniMoeThinkerForConditionalGeneration",
        rows,
        video,
        types=None,
        extra=(lambda ids: dict(video_second_per_grid=torch.ones(ids.shape[0]))) if video else None,
    )
