"""Families that take patches of pictures of any shape, in tiny sizes."""

import torch

from tests.support.tiny_families.parts import (
    AUDIO,
    END,
    IMAGE,
    NONE,
    START,
    VIDEO,
    Built,
    both,
    finish,
    hf,
    images,
    noise,
    small,
    text,
)
from tests.support.tiny_families.shared import stream


@images("hunyuan_vl")
def hunyuan_vl(rows: int) -> Built:
    config = hf.HunYuanVLConfig(
        text_config=text(
            rope_parameters={
                "rope_type": "dynamic",
                "alpha": 1000.0,
                "factor": 1.0,
                "rope_theta": 10000.0,
                "mrope_section": [1, 1, 1, 1],
            }
        ),
        vision_config=small(
            out_hidden_size=32,
            patch_size=4,
            spatial_merge_size=2,
            max_image_size=32,
            text_hidden_size=32,
            img_max_token_num=64,
        ),
        image_token_id=IMAGE,
        im_start_id=START,
        im_end_id=END,
        im_newline_id=96,
    )
    return finish(
        hf.HunYuanVLForConditionalGeneration(config),
        {
            "pixel_values": torch.randn(16 * rows, 48),
            "image_grid_thw": torch.tensor([[1, 4, 4]] * rows),
        },
        rows,
        wrap=False,
    )


@images("lfm2_vl")
def lfm2_vl(rows: int) -> Built:
    config = hf.Lfm2VlConfig(
        vision_config=small(
            model_type="siglip2_vision_model", patch_size=4, num_patches=16, vision_use_head=False
        ),
        text_config=text(
            "lfm2", layer_types=["conv", "full_attention"], block_ff_dim=64, conv_L_cache=3
        ),
        image_token_id=IMAGE,
        projector_hidden_size=32,
    )
    return finish(
        hf.Lfm2VlForConditionalGeneration(config),
        dict(
            pixel_values=torch.randn(rows, 16, 48),
            spatial_shapes=torch.tensor([[4, 4]] * rows),
            pixel_attention_mask=torch.ones(rows, 16, dtype=torch.long),
        ),
        rows,
        wrap=False,
    )


@both("lfm3_vl")
def lfm3_vl(rows: int, video: bool) -> Built:
    config = hf.Lfm3VlConfig(
        text_config=text(
            "lfm3",
            layer_types=["conv", "full_attention"],
            rope_parameters={
                "full_attention": {"rope_type": "default", "rope_theta": 10000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        ),
        vision_config=small(
            patch_size=4,
            spatial_merge_size=2,
            temporal_patch_size=2,
            num_key_value_heads=2,
            layer_types=["conv", "full_attention"],
        ),
        projector_hidden_size=32,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=START,
        vision_end_token_id=END,
    )
    return finish(hf.Lfm3VlForConditionalGeneration(config), stream(rows, video), rows, video)


@images("inkling")
def inkling(rows: int) -> Built:
    config = hf.InklingConfig(
        text_config=text(
            swa_num_attention_heads=4,
            swa_num_key_value_heads=2,
            swa_head_dim=8,
            sliding_window_size=16,
            d_rel=4,
            rel_extent=64,
            layer_types=["hybrid_sliding", "hybrid"],
            mlp_layer_types=["dense", "sparse"],
            moe_intermediate_size=16,
            n_routed_experts=4,
            num_experts_per_tok=2,
            n_shared_experts=1,
        ),
        vision_config=dict(
            text_hidden_size=32,
            patch_size=8,
            temporal_patch_size=2,
            hidden_size=32,
            n_layers=2,
            num_attention_heads=4,
        ),
        audio_config=dict(n_mel_bins=8, mel_vocab_size=16, text_hidden_size=32),
        image_token_id=IMAGE,
        audio_token_id=AUDIO,
        image_bos_token_id=START,
        audio_bos_token_id=94,
    )
    return finish(
        hf.InklingForConditionalGeneration(config),
        dict(pixel_values=torch.randn(rows, 2, 8, 8, 3)),
        rows,
        wrap=False,
    )


@images("inkling2")
def inkling2(rows: int) -> Built:
    config = hf.Inkling2Config(
        text_config=text(
            unpadded_vocab_size=120,
            swa_num_attention_heads=4,
            swa_num_key_value_heads=2,
            swa_head_dim=8,
            sliding_window_size=16,
            d_rel=4,
            rel_extent=64,
            layer_types=["hybrid_sliding", "hybrid"],
            moe_intermediate_size=16,
            n_routed_experts=4,
            num_experts_per_tok=2,
            n_layers_per_attn_res_block=1,
        ),
        vision_config=small(
            patch_size=4,
            spatial_merge_size=2,
            posemb_grid_size=4,
            projection_hidden_dim=32,
            text_hidden_size=32,
        ),
        image_token_id=IMAGE,
    )
    inputs = dict(
        pixel_values=torch.randn(rows * 4, 8, 8, 3), image_grid_thw=torch.tensor([[1, 2, 2]] * rows)
    )
    return finish(hf.Inkling2ForConditionalGeneration(config), inputs, rows, wrap=False)


@both("nemotron_h_omni")
def nemotron_h_omni(rows: int, video: bool) -> Built:
    config = hf.NemotronH_Omni_Reasoning_V3_Config(
        vision_config=small(
            model_type="radio",
            image_size=32,
            patch_size=8,
            video_temporal_patch_size=2,
            torch_dtype="float32",
        ),
        text_config=text(
            "nemotron_h",
            layers_block_type=["mamba", "attention"],
            num_hidden_layers=NONE,
            mamba_num_heads=4,
            mamba_head_dim=8,
            n_groups=1,
            ssm_state_size=8,
            chunk_size=8,
            expand=1,
            conv_kernel=2,
        ),
        audio_config=None,
        force_image_size=32,
        downsample_ratio=0.5,
        projector_hidden_size=32,
        vision_hidden_size=32,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        audio_token_id=AUDIO,
    )
    patches = dict(
        pixel_values=torch.randn(rows * 16, 192), image_grid_hw=torch.tensor([[4, 4]] * rows)
    )
    pixels = dict(pixel_values_videos=noise(rows * 4)) if video else patches
    return finish(hf.NemotronH_Omni_Reasoning_V3(config), pixels, rows, video, wrap=False)
