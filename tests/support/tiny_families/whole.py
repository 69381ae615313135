"""Families that take a picture as one tensor, in tiny sizes."""

import torch

from tests.support.tiny_families.parts import (
    IMAGE,
    INDEX,
    NONE,
    Built,
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
from tests.support.tiny_families.shared import SAM, pixtral, sized

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
