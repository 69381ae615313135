"""Families that take a stream of patches and their grids, in tiny sizes."""

from typing import Any

import torch

from tests.support.tiny_families.parts import (
    AUDIO,
    END,
    IMAGE,
    INDICES,
    INTERLEAVED,
    MARKED,
    MROPE,
    NONE,
    SEEN,
    START,
    TOKENS,
    VIDEO,
    Built,
    both,
    config_of,
    family,
    finish,
    model_of,
    patches,
    small,
    text,
)
from tests.support.tiny_families.shared import (
    EXPERTS,
    GROUPED,
    HYBRID,
    INDEXED,
    LATENT,
    QWEN_2,
    ROUTED,
    SMALL,
    SPARSE,
    stream,
    streaming,
)

DEEP = patches(num_position_embeddings=16, deepstack_visual_indexes=[0, 1])
"""A tower of which the language half sees several layers."""
PLACED = patches(num_position_embeddings=16)
WINDOWS: dict[str, Any] = dict(window_size=16, fullatt_block_indexes=[1])
TURNED = text(rope_parameters=MROPE, head_dim=NONE)
TALL: dict[str, Any] = dict(rope_parameters=INTERLEAVED, num_hidden_layers=3)
ROUTING: dict[str, Any] = dict(
    moe_intermediate_size=16, num_experts=4, num_experts_per_tok=2, decoder_sparse_step=1
)
HEARD: dict[str, Any] = dict(**TOKENS, audio_token_id=AUDIO, audio_start_token_id=92)
HEARD |= dict(audio_end_token_id=91, user_token_id=90)
ALL_FULL: dict[str, Any] = {"layer_types": ["full_attention"] * 2}
EAR: dict[str, Any] = dict(num_mel_bins=20, encoder_layers=1, encoder_attention_heads=4, d_model=32)
EAR |= dict(encoder_ffn_dim=32, max_source_positions=100, n_window=8, output_dim=32)


def seconds(ids: torch.Tensor, video: bool) -> dict[str, Any]:
    return {"second_per_grid_ts": torch.tensor([1.0] * ids.shape[0])} if video else {}


def grid_seconds(ids: torch.Tensor, video: bool) -> dict[str, Any]:
    return {"video_second_per_grid": torch.ones(ids.shape[0])} if video else {}


_vision = patches(embed_dim=32, mlp_ratio=2, intermediate_size=NONE, out_hidden_size=NONE)
streaming("qwen2_vl", "Qwen2VL", TURNED, _vision, **TOKENS)
streaming("qwen2_5_vl", "Qwen2_5_VL", TURNED, patches(**WINDOWS), extra=seconds, **TOKENS)
streaming("qwen3_vl", "Qwen3VL", text(**TALL), DEEP, frames=2, **TOKENS)
_text = text(**TALL, **ROUTING, num_local_experts=4)
streaming("qwen3_vl_moe", "Qwen3VLMoe", _text, DEEP, frames=2, **TOKENS)
streaming("qwen3_5", "Qwen3_5", text(**HYBRID), PLACED, frames=2, **TOKENS)
streaming("qwen3_5_moe", "Qwen3_5Moe", text(**HYBRID, **EXPERTS), PLACED, frames=2, **TOKENS)
_text = text(**{**HYBRID, "rope_parameters": INTERLEAVED}, **EXPERTS, hc_count=2, hc_lowrank=8)
_text |= dict(indexer_n_heads=2, indexer_kv_heads=1, indexer_head_dim=8, indexer_budget=64)
_text |= dict(indexer_compress_ratio=4, ple_embed_dim=8, ple_layer_ids=[])
streaming("qwen4_exp", "Qwen4Exp", _text, PLACED, frames=2, **TOKENS)
streaming("cosmos3_omni", "Cosmos3Omni", text(**TALL), DEEP, frames=2, **TOKENS)
_vision = small(patch_size=4, num_patches=16, spatial_merge_size=2)
_more: dict[str, Any] = dict(projector_hidden_size=64, depth=1, frames=2)
_text = text(rope_parameters=MROPE)
streaming("cosmos3_edge", "Cosmos3Edge", _text, _vision, **_more, **TOKENS)
_text = text("exaone4", sliding_window=None, sliding_window_pattern=NONE, **ALL_FULL)
_vision = patches(**WINDOWS, num_key_value_heads=2)
streaming("exaone4_5", "Exaone4_5_", _text, _vision, types=None, **SEEN)
_vision = patches(model_type="qwen2_5_vl_vision", **WINDOWS)
_name = "hyperclovax_vision_v2"
streaming(_name, "HyperCLOVAXVisionV2", text("hyperclovax"), _vision, types=None, **SEEN)
_text = text(**ALL_FULL, rope_parameters={"full_attention": MROPE})
streaming("cohere_compass", "CohereCompass", _text, DEEP, frames=2, **TOKENS)
HEARING: dict[str, Any] = dict(types=None, extra=grid_seconds, **HEARD)
_more = dict(audio_config=EAR, audio_token_index=AUDIO, **HEARING, **INDICES)
streaming("qwen2_5_omni_thinker", "Qwen2_5OmniThinker", TURNED, patches(**WINDOWS), **_more)
_more = dict(audio_config={**EAR, "downsample_hidden_size": 8}, **HEARING)
_text = text(**TALL, **ROUTING)
streaming("qwen3_omni_moe_thinker", "Qwen3OmniMoeThinker", _text, DEEP, **_more)


def framed(name: str, prefix: str, text: Any, marks: bool = False, **vision: Any) -> None:
    """Register a family whose frames stand in the prompt as pictures do, `marks` around them."""

    def build(rows: int, video: bool) -> Built:
        model = model_of(config_of(prefix, text, patches(**vision, **SMALL), **MARKED))
        pixels = stream(rows, video)
        if not video:
            return finish(model, pixels, rows, types="mm_token_type_ids")

        def frames(places: int) -> list[int]:
            body = [START, *[IMAGE] * (places // 2), END] * 2
            return [94, *body, 93] if marks else body

        model, inputs = finish(model, pixels, rows, True, place=IMAGE, middle=frames)
        return model, {**inputs, "mm_token_type_ids": (inputs["input_ids"] == IMAGE).long() * 2}

    both(name)(build)


framed("glm4v", "Glm4v", TURNED)
for _name in ("glm46v", "glmga"):
    framed(_name, "Glm46V", {**TURNED, "model_type": "glm4v_text"}, model_type="glm4v_vision")
framed("glm_ocr", "GlmOcr", text(rope_parameters=MROPE))
_turned = dict(MROPE, partial_rotary_factor=1.0)
_text = text(rope_parameters=_turned, first_k_dense_replace=1, **GROUPED)
framed("glm4v_moe", "Glm4vMoe", _text)
_text = text(**LATENT, **INDEXED, **SPARSE, qk_rope_head_dim=0, head_dim=NONE, hc_mult=2)
_text |= dict(layer_types=["linear_attention", "indexed_attention"], linear_head_dim=8)
_text |= dict(indexer_types=["full", "full"], linear_num_heads=4, linear_conv_kernel_dim=2)
framed("glm5_next", "Glm5Next", _text, marks=True, projection_intermediate_size=64)
_text = text(rope_parameters=dict(MROPE, mrope_section=[1, 1, 2]), moe_k=2, moe_num_experts=4)
_text |= dict(moe_intermediate_size=[16, 16], moe_num_shared_experts=1, **SPARSE)
_vision = patches(depth=2, temporal_merge_size=2, temporal_patch_size=NONE, out_hidden_size=NONE)


def seen_ids(ids: torch.Tensor, video: bool) -> dict[str, Any]:
    return {"moe_mm_token_type_ids": ((ids == IMAGE) | (ids == VIDEO)).int()}


_more = dict(depth=1, extra=seen_ids, **MARKED)
streaming("ernie4_5_vl_moe", "Ernie4_5_VLMoe", _text, _vision, **_more)


@both("video_llama_3")
def video_llama_3(rows: int, video: bool) -> Built:
    vision = small(model_type="video_llama_3_vision", patch_size=4)
    model = model_of(config_of("VideoLlama3", QWEN_2, vision, **SEEN))
    inputs = stream(rows, video, 4, 1)
    inputs["video_merge_sizes" if video else "image_merge_sizes"] = torch.tensor([2] * rows)
    mask = {"video_compression_mask": torch.ones(rows * 2 * 4, dtype=torch.bool)}
    return finish(model, inputs, rows, video, wrap=False, extra=lambda _: mask if video else {})


def one_step(rows: int, video: bool = False) -> dict[str, Any]:
    """Square patches of pictures, or of videos of one step."""
    pixels, grid = torch.randn(16 * rows, 3, 4, 4), torch.tensor([[1, 4, 4]] * rows)
    if video:
        return {"pixel_values_videos": pixels, "video_grid_thw": grid}
    return {"pixel_values": pixels, "image_grid_thw": grid}


_vision = small(image_size=16, patch_size=4, spatial_merge_size=2)
_more = dict(inputs=one_step, finishing={"types": "mm_token_type_ids"}, **TOKENS)
family("paddleocr_vl", "PaddleOCRVL", text(rope_parameters=MROPE), _vision, **_more)
MUSE = small(patch_size=4, pos_emb_height=4, pos_emb_width=4, patch_temporal=2, merge_size=2)
MUSE |= dict(max_position_embeddings=64, layer_types=["window_attention", "full_attention"])
MUSE_TEXT = text(sliding_window=64, layer_rope_theta=[10000.0, 0])
MUSE_TEXT |= {"layer_types": ["sliding_attention", "full_attention"]}
MUSED: dict[str, Any] = dict(out_hidden_size=128, projector_hidden_size=32, types=None, **SEEN)
streaming("muse_glimmer", "MuseGlimmer", MUSE_TEXT, MUSE, **MUSED)
_text = {**MUSE_TEXT, **ROUTED, **SPARSE, "moe_hidden_size": 32}
_heard: dict[str, Any] = dict(patch_sizes=[2, 2], hidden_sizes=[16, 32], depths=[1, 1])
_heard |= dict(num_hidden_layers=2, out_hidden_size=32)
_more = dict(audio_token_id=AUDIO, audio_config=_heard, **MUSED)
streaming("muse_spark", "MuseSpark", _text, MUSE, **_more)


def half_turned(theta: float) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": theta, "partial_rotary_factor": 0.5}


_ropes = {"sliding_attention": half_turned(50000.0), "indexed_attention": half_turned(80000.0)}
_text = text(**LATENT, **SPARSE, **{**INDEXED, "index_head_dim": 16}, qk_rope_head_dim=8)
_text |= dict(head_dim=16, sliding_window=16, per_layer_config={}, rope_parameters=_ropes)
_text |= dict(shared_experts_intermediate_size=16)
_text |= dict(layer_types=["indexed_attention", "sliding_attention"])
_vision = small(patch_size=4, spatial_merge_size=2, adapter_in_dim=32, adapter_out_dim=32)
_vision |= dict(adapter_merge_size=2, per_layer_config={}, **ROUTED, **SPARSE)
_heard = small(num_hidden_layers=1, num_key_value_heads=4, head_dim=8, downsample_hidden_size=8)
_heard |= dict(adapter_input_size=32, adapter_out_dim=32, conv_output_size=128, feature_size=16)
_more = dict(audio_config=_heard, audio_token_id=AUDIO, depth=1, types=None, **SEEN)
streaming("dots3_note", "Dots3Note", _text, _vision, **_more)
_latent: dict[str, Any] = dict(**LATENT, qk_rope_head_dim=8, head_dim=NONE)
_text = text("deepseek_v3", **_latent, first_k_dense_replace=1)
_vision = small(patch_size=4, pos_emb_height=4, pos_emb_width=4, pos_emb_time=4)
_more = dict(inputs=one_step, video=True, finishing={}, projection_hidden_size=32, **TOKENS)
family("kimi_k25", "Kimi_K25", _text, _vision, **_more)
_text = text(num_local_experts=4, num_experts_per_tok=2, dense_intermediate_size=64)
_text |= dict(shared_intermediate_size=16, rotary_dim=8, index_n_heads=2, index_head_dim=8)
_text |= dict(index_block_size=16, index_topk_blocks=4, **SPARSE)
_text |= dict(layer_types=["full_attention", "minimax_m3_sparse"])
_vision = small(num_attention_heads=2, image_size=32, patch_size=4)
_more = dict(cls="MiniMaxM3SparseForConditionalGeneration", projector_hidden_size=32, types=None)
streaming("minimax_m3_vl", "MiniMaxM3VL", _text, _vision, **_more, **INDICES)
