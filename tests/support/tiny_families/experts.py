"""Families over mixtures of experts and latent attention, in tiny sizes."""

from typing import Any

import torch

from tests.support.tiny_families.parts import (
    END,
    IMAGE,
    INDEX,
    NONE,
    START,
    Built,
    both,
    finish,
    hf,
    images,
    noise,
    pictures,
    small,
    text,
)
from tests.support.tiny_families.shared import LATENT, SAM, pixtral, sized

LLAMA4: dict[str, Any] = dict(
    hidden_size=32,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    image_size=32,
    patch_size=8,
    vision_output_dim=32,
    projector_input_dim=32,
    projector_output_dim=32,
)

DEEPSEEK: dict[str, Any] = dict(
    num_key_value_heads=4,
    n_routed_experts=4,
    n_shared_experts=1,
    moe_intermediate_size=16,
    num_experts_per_tok=2,
    mlp_layer_types=["dense", "sparse"],
    n_group=1,
    topk_group=1,
)


@images("deepseek_ocr2")
def deepseek_ocr2(rows: int) -> Built:
    config = hf.DeepseekOcr2Config(
        text_config=text(**DEEPSEEK),
        vision_config=dict(
            sam_config=dict(SAM, downsample_channels=[16, 32]),
            encoder_config=small(
                num_key_value_heads=2,
                max_position_embeddings=512,
                vocab_size=120,
                max_window_layers=2,
            ),
        ),
        image_token_id=IMAGE,
    )
    return finish(
        hf.DeepseekOcr2ForConditionalGeneration(config),
        dict(pixel_values=noise(rows, 64)),
        rows,
        wrap=False,
    )


@images("unlimited_ocr")
def unlimited_ocr(rows: int) -> Built:
    config = hf.UnlimitedOcrConfig(
        text_config=text(
            **DEEPSEEK, sliding_window=16, layer_types=["reference_sliding_attention"] * 2
        ),
        vision_config=dict(
            sam_config=dict(SAM, downsample_channels=[16, 32]),
            encoder_config=small(image_size=32, patch_size=8),
        ),
        image_token_id=IMAGE,
    )
    return finish(
        hf.UnlimitedOcrForConditionalGeneration(config),
        dict(pixel_values=noise(rows, 64)),
        rows,
        wrap=False,
    )


@images("mistral_large4")
def mistral_large4(rows: int) -> Built:
    return sized(
        "MistralLarge4ForConditionalGeneration",
        hf.MistralLarge4Config(
            vision_config=pixtral(),
            text_config=text(
                **LATENT,
                qk_rope_head_dim=8,
                mlp_layer_types=["dense", "sparse"],
                index_topk=64,
                index_head_dim=8,
                index_n_heads=2,
                head_dim=NONE,
                first_k_dense_replace=1,
            ),
            spatial_merge_size=2,
            **INDEX,
        ),
        rows,
    )


pictures(
    "llama4",
    "Llama4ForConditionalGeneration",
    lambda: hf.Llama4Config(
        vision_config=dict(LLAMA4),
        text_config=text(
            intermediate_size_mlp=64,
            num_local_experts=2,
            num_experts_per_tok=1,
            attention_chunk_size=64,
            moe_layers=[1],
        ),
        image_token_index=IMAGE,
        boi_token_index=START,
        eoi_token_index=END,
    ),
)


@both("molmo2")
def molmo2(rows: int, video: bool) -> Built:
    config = hf.Molmo2Config(
        vision_config=dict(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=4,
            head_dim=8,
            image_size=[32, 32],
            patch_size=8,
        ),
        adapter_config=dict(
            vision_feature_layer=[-1, -2],
            hidden_size=32,
            num_attention_heads=4,
            num_key_value_heads=4,
            head_dim=8,
            intermediate_size=64,
            text_hidden_size=32,
        ),
        text_config=text(additional_vocab_size=16),
        image_start_token_id=START,
        image_end_token_id=END,
        image_patch_id=IMAGE,
        low_res_image_start_token_id=94,
        frame_start_token_id=93,
        frame_end_token_id=92,
    )
    pool = torch.tensor([[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]])
    pictures = rows * 3 if video else rows
    pool = torch.cat([pool + 16 * b for b in range(pictures)])
    pixels = torch.randn(pictures, 16, 192)
    given = {
        "pixel_values": pixels,
        "image_token_pooling": pool,
        "image_grids": torch.tensor([[2, 2, 0, 0]] * rows),
    }
    if video:
        given = {
            "pixel_values_videos": pixels,
            "video_token_pooling": pool,
            "video_grids": torch.tensor([[3, 2, 2]] * rows),
        }
    return finish(hf.Molmo2ForConditionalGeneration(config), given, rows, video, place=IMAGE)
