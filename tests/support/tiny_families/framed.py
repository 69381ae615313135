"""Families that take a stream of patches and frame each picture by marks, in tiny sizes."""

from typing import Any

import torch

from tests.support.tiny_families.parts import (
    END,
    IMAGE,
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
from tests.support.tiny_families.shared import LATENT, SMALL, stream, streamed


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


@both("glm46v")
def glm46v(rows: int, video: bool) -> Built:
    config = hf.Glm46VConfig(
        text_config=text("glm4v_text", rope_parameters=MROPE, head_dim=NONE),
        vision_config=patches(model_type="glm4v_vision", **SMALL),
        **MARKED,
    )
    return framed(config, "Glm46VForConditionalGeneration", rows, video)


@both("glmga")
def glmga(rows: int, video: bool) -> Built:
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
