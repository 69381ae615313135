"""Families that take pictures as one tensor, in tiles or in patches, in tiny sizes."""

import torch

from tests.support.tiny_families.parts import (
    AUDIO,
    END,
    IMAGE,
    INDEX,
    NONE,
    PINPOINTS,
    START,
    VIDEO,
    Built,
    both,
    clip,
    count,
    finish,
    hf,
    images,
    llama,
    noise,
    pictures,
    siglip,
    small,
    text,
    tower,
)
from tests.support.tiny_families.shared import SAM, pixtral, sized, stream, tiles

pictures(
    "internvl",
    "InternVLForConditionalGeneration",
    lambda: hf.InternVLConfig(
        vision_config=small(model_type="internvl_vision", image_size=[32, 32], patch_size=[8, 8]),
        text_config=text("qwen2", head_dim=NONE),
        image_token_id=IMAGE,
        image_seq_length=4,
    ),
    frames=3,
)

pictures(
    "qianfan_ocr",
    "QianfanOCRForConditionalGeneration",
    lambda: hf.QianfanOCRConfig(
        vision_config=small(
            model_type="qianfan_ocr_vision", image_size=[32, 32], patch_size=[8, 8]
        ),
        text_config=text("qwen3"),
        image_token_id=IMAGE,
        image_seq_length=4,
    ),
)

pictures(
    "aya_vision",
    "AyaVisionForConditionalGeneration",
    lambda: hf.AyaVisionConfig(
        vision_config=siglip(),
        text_config=text(
            "cohere2",
            head_dim=NONE,
            sliding_window=16,
            layer_types=["sliding_attention", "full_attention"],
        ),
        image_token_index=IMAGE,
        downsample_factor=2,
        alignment_intermediate_size=64,
    ),
)

pictures(
    "cohere2_vision",
    "Cohere2VisionForConditionalGeneration",
    lambda: hf.Cohere2VisionConfig(
        vision_config=siglip(),
        text_config=text(
            "cohere2",
            head_dim=NONE,
            sliding_window=16,
            layer_types=["sliding_attention", "full_attention"],
        ),
        image_token_id=IMAGE,
        downsample_factor=2,
        alignment_intermediate_size=64,
    ),
)

pictures(
    "ovis2",
    "Ovis2ForConditionalGeneration",
    lambda: hf.Ovis2Config(
        vision_config=small(
            image_size=32,
            patch_size=8,
            vocab_size=40,
            hidden_stride=1,
            num_visual_indicator_tokens=5,
        ),
        text_config=text("qwen2", head_dim=NONE),
        image_token_id=IMAGE,
        visual_indicator_token_ids=[100, 101, 102, 103, 104],
        vocab_size=120,
        hidden_size=32,
    ),
)

pictures(
    "deepseek_vl",
    "DeepseekVLForConditionalGeneration",
    lambda: hf.DeepseekVLConfig(vision_config=siglip(), text_config=llama(), image_token_id=IMAGE),
)


@images("deepseek_vl_hybrid")
def deepseek_vl_hybrid(rows: int) -> Built:
    config = hf.DeepseekVLHybridConfig(
        vision_config=siglip(image_size=32, patch_size=8),
        high_res_vision_config=dict(
            SAM, model_type="sam_vision_model", image_size=64, patch_size=4
        ),
        text_config=llama(),
        image_token_id=IMAGE,
    )
    return finish(
        hf.DeepseekVLHybridForConditionalGeneration(config),
        dict(pixel_values=noise(rows), high_res_pixel_values=noise(rows, 64)),
        rows,
        wrap=False,
    )


pictures(
    "janus",
    "JanusForConditionalGeneration",
    lambda: hf.JanusConfig(
        text_config=llama(),
        vision_config=dict(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=32,
            patch_size=8,
            projection_dim=32,
            depth=2,
            num_image_tokens=16,
            mlp_ratio=2,
        ),
        vq_config=dict(
            embed_dim=8,
            num_embeddings=16,
            latent_channels=32,
            base_channels=32,
            channel_multiplier=[1, 1],
            num_res_blocks=1,
            num_patches=4,
            projection_dim=32,
            image_token_embed_dim=32,
            num_hidden_layers=1,
        ),
        image_token_id=IMAGE,
    ),
)

pictures(
    "got_ocr2",
    "GotOcr2ForConditionalGeneration",
    lambda: hf.GotOcr2Config(
        vision_config=dict(SAM),
        text_config=text("qwen2", head_dim=NONE),
        image_token_id=IMAGE,
        image_seq_length=16,
        image_token_index=IMAGE,
    ),
    size=64,
)

pictures(
    "pp_chart2table",
    "GotOcr2ForConditionalGeneration",
    lambda: hf.PPChart2TableConfig(
        vision_config=dict(SAM),
        text_config=text("qwen2", head_dim=NONE),
        image_token_id=IMAGE,
        image_seq_length=16,
        image_token_index=IMAGE,
    ),
    size=64,
)


@images("mistral3")
def mistral3(rows: int) -> Built:
    return sized(
        "Mistral3ForConditionalGeneration",
        hf.Mistral3Config(
            vision_config=pixtral(),
            text_config=text("mistral", sliding_window=None),
            spatial_merge_size=2,
            **INDEX,
        ),
        rows,
    )


@images("lighton_ocr")
def lighton_ocr(rows: int) -> Built:
    return sized(
        "LightOnOcrForConditionalGeneration",
        hf.LightOnOcrConfig(
            vision_config=pixtral(),
            text_config=text("qwen3"),
            spatial_merge_size=2,
            image_token_id=IMAGE,
        ),
        rows,
    )


@images("aria")
def aria(rows: int) -> Built:
    config = hf.AriaConfig(
        vision_config=tower("idefics3_vision"),
        text_config=text("aria_text", moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1),
        projector_patch_to_query_dict={16: 4},
        image_token_index=IMAGE,
    )
    return finish(
        hf.AriaForConditionalGeneration(config),
        dict(pixel_values=noise(rows), pixel_mask=torch.ones(rows, 32, 32, dtype=torch.bool)),
        rows,
        wrap=False,
    )


pictures(
    "llava",
    "LlavaForConditionalGeneration",
    lambda: hf.LlavaConfig(vision_config=clip(), text_config=llama(), **INDEX),
)

pictures(
    "llava:siglip",
    "LlavaForConditionalGeneration",
    lambda: hf.LlavaConfig(
        vision_config=siglip(),
        text_config=llama(tie_word_embeddings=True),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=True,
        **INDEX,
    ),
)

pictures(
    "vipllava",
    "VipLlavaForConditionalGeneration",
    lambda: hf.VipLlavaConfig(
        vision_config=clip(num_hidden_layers=4),
        text_config=llama(),
        vision_feature_layers=[-1, -2, 1],
        vision_feature_layer=[-1, -2, 1],
        **INDEX,
    ),
)


@images("llava:pixtral")
def llava_pixtral(rows: int) -> Built:
    return sized(
        "LlavaForConditionalGeneration",
        hf.LlavaConfig(
            vision_config=pixtral(),
            text_config=text("mistral", sliding_window=None),
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
            **INDEX,
        ),
        rows,
    )


@images("llava_next")
def llava_next(rows: int) -> Built:
    return finish(
        hf.LlavaNextForConditionalGeneration(
            hf.LlavaNextConfig(
                vision_config=clip(), text_config=llama(), image_grid_pinpoints=PINPOINTS, **INDEX
            )
        ),
        tiles(rows),
        rows,
        wrap=False,
    )


@both("llava_next_video")
def llava_next_video(rows: int, video: bool) -> Built:
    model = hf.LlavaNextVideoForConditionalGeneration(
        hf.LlavaNextVideoConfig(
            vision_config=clip(),
            text_config=llama(),
            image_grid_pinpoints=PINPOINTS,
            image_token_index=IMAGE,
            video_token_index=VIDEO,
        )
    )
    return finish(
        model,
        dict(pixel_values_videos=torch.randn(rows, 3, 3, 32, 32)) if video else tiles(rows),
        rows,
        video,
        wrap=False,
    )


@both("llava_onevision")
def llava_onevision(rows: int, video: bool) -> Built:
    model = hf.LlavaOnevisionForConditionalGeneration(
        hf.LlavaOnevisionConfig(
            vision_config=siglip(),
            text_config=text("qwen2", head_dim=NONE),
            image_grid_pinpoints=PINPOINTS,
            image_token_index=IMAGE,
            video_token_index=VIDEO,
        )
    )
    total = None
    if video:
        with torch.no_grad():
            n = count(
                model.model.get_video_features(
                    pixel_values_videos=torch.randn(rows, 3, 3, 32, 32), return_dict=True
                )
            )
            total = n
    return finish(
        model,
        dict(pixel_values_videos=torch.randn(rows, 3, 3, 32, 32)) if video else tiles(rows),
        rows,
        video,
        wrap=False,
        total=total,
    )


@both("video_llava")
def video_llava(rows: int, video: bool) -> Built:
    model = hf.VideoLlavaForConditionalGeneration(
        hf.VideoLlavaConfig(
            vision_config=clip(),
            text_config=llama(),
            image_token_index=IMAGE,
            video_token_index=VIDEO,
        )
    )
    return finish(
        model,
        dict(pixel_values_videos=torch.randn(rows, 8, 3, 32, 32))
        if video
        else dict(pixel_values_images=noise(rows)),
        rows,
        video,
        wrap=False,
    )


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
