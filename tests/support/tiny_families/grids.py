"""Families that take a stream of patches and their grids, in tiny sizes."""

from typing import Any

import torch

from tests.support.tiny_families.parts import (
    AUDIO,
    END,
    IMAGE,
    INTERLEAVED,
    MARKED,
    MROPE,
    NONE,
    START,
    TOKENS,
    VIDEO,
    Built,
    both,
    finish,
    hf,
    images,
    patches,
    small,
    text,
)
from tests.support.tiny_families.shared import EXPERTS, HYBRID, LATENT, SMALL, stream, streamed


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


def framed(config: Any, cls: str, rows: int, video: bool) -> Built:
    if not video:
        return streamed(config, cls, rows, video)
    model, out = streamed(config, cls, rows, video, frames=2, place=IMAGE, wrap=False)
    out["mm_token_type_ids"] = (out["input_ids"] == IMAGE).long() * 2
    return (model, out)


GROUPED: dict[str, Any] = dict(
    moe_intermediate_size=16,
    num_experts_per_tok=2,
    n_shared_experts=1,
    n_routed_experts=4,
    n_group=1,
    topk_group=1,
)


@both("glm4v")
def glm4v(rows: int, video: bool) -> Built:
    config = hf.Glm4vConfig(
        text_config=text(rope_parameters=MROPE, head_dim=NONE),
        vision_config=patches(**SMALL),
        **MARKED,
    )
    return framed(config, "Glm4vForConditionalGeneration", rows, video)


@both("glmga")
@both("glm46v")
def glm46v(rows: int, video: bool) -> Built:
    config = hf.Glm46VConfig(
        text_config=text("glm4v_text", rope_parameters=MROPE, head_dim=NONE),
        vision_config=patches(model_type="glm4v_vision", **SMALL),
        **MARKED,
    )
    return framed(config, "Glm46VForConditionalGeneration", rows, video)


@both("glm_ocr")
def glm_ocr(rows: int, video: bool) -> Built:
    config = hf.GlmOcrConfig(
        text_config=text(rope_parameters=MROPE), vision_config=patches(**SMALL), **MARKED
    )
    return framed(config, "GlmOcrForConditionalGeneration", rows, video)


@both("glm4v_moe")
def glm4v_moe(rows: int, video: bool) -> Built:
    config = hf.Glm4vMoeConfig(
        text_config=text(
            rope_parameters=dict(MROPE, partial_rotary_factor=1.0),
            first_k_dense_replace=1,
            **GROUPED,
        ),
        vision_config=patches(**SMALL),
        **MARKED,
    )
    return framed(config, "Glm4vMoeForConditionalGeneration", rows, video)


@both("glm5_next")
def glm5_next(rows: int, video: bool) -> Built:
    config = hf.Glm5NextConfig(
        text_config=text(
            **LATENT,
            qk_rope_head_dim=0,
            head_dim=NONE,
            mlp_layer_types=["dense", "sparse"],
            index_topk=64,
            index_head_dim=8,
            index_n_heads=2,
            layer_types=["linear_attention", "indexed_attention"],
            indexer_types=["full", "full"],
            linear_head_dim=8,
            linear_num_heads=4,
            linear_conv_kernel_dim=2,
            hc_mult=2,
        ),
        vision_config=patches(projection_intermediate_size=64, **SMALL),
        **MARKED,
    )
    if not video:
        return framed(config, "Glm5NextForConditionalGeneration", rows, video)
    model, out = streamed(
        config,
        "Glm5NextForConditionalGeneration",
        rows,
        True,
        place=IMAGE,
        wrap=False,
        middle=lambda n: [94] + ([START] + [IMAGE] * (n // 2) + [END]) * 2 + [93],
    )
    out["mm_token_type_ids"] = (out["input_ids"] == IMAGE).long() * 2
    return (model, out)


@both("ernie4_5_vl_moe")
def ernie4_5_vl_moe(rows: int, video: bool) -> Built:
    config = hf.Ernie4_5_VLMoeConfig(
        text_config=text(
            rope_parameters=dict(MROPE, mrope_section=[1, 1, 2]),
            moe_intermediate_size=[16, 16],
            moe_k=2,
            moe_num_experts=4,
            moe_num_shared_experts=1,
            mlp_layer_types=["dense", "sparse"],
        ),
        vision_config=dict(
            depth=2,
            hidden_size=32,
            num_heads=4,
            patch_size=4,
            spatial_merge_size=2,
            temporal_merge_size=2,
            intermediate_size=64,
        ),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        image_start_token_id=START,
        image_end_token_id=END,
        video_start_token_id=94,
        video_end_token_id=93,
    )
    return streamed(
        config,
        "Ernie4_5_VLMoeForConditionalGeneration",
        rows,
        video,
        depth=1,
        extra=lambda ids: dict(moe_mm_token_type_ids=((ids == IMAGE) | (ids == VIDEO)).int()),
    )


@both("video_llama_3")
def video_llama_3(rows: int, video: bool) -> Built:
    config = hf.VideoLlama3Config(
        text_config=text("qwen2", head_dim=NONE),
        vision_config=small(model_type="video_llama_3_vision", patch_size=4),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
    )
    model = hf.VideoLlama3ForConditionalGeneration(config)
    d = stream(rows, video, 4, 1)
    d["video_merge_sizes" if video else "image_merge_sizes"] = torch.tensor([2] * rows)
    ex = (
        (lambda ids: dict(video_compression_mask=torch.ones(rows * 2 * 4, dtype=torch.bool)))
        if video
        else None
    )
    return finish(model, d, rows, video, wrap=False, extra=ex)


@images("paddleocr_vl")
def paddleocr_vl(rows: int) -> Built:
    config = hf.PaddleOCRVLConfig(
        text_config=text(rope_parameters=MROPE),
        vision_config=small(image_size=16, patch_size=4, spatial_merge_size=2),
        **TOKENS,
    )
    d = stream(rows, False, 4, 1)
    d["pixel_values"] = torch.randn(16 * rows, 3, 4, 4)
    return finish(
        hf.PaddleOCRVLForConditionalGeneration(config), d, rows, types="mm_token_type_ids"
    )


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
