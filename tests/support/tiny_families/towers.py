"""Families that take pictures as one tensor, in tiles or in patches, in tiny sizes."""

from typing import Any

import torch

from tests.support.tiny_families.parts import (
    AUDIO,
    END,
    IMAGE,
    INDEX,
    INDICES,
    NONE,
    PINPOINTS,
    SEEN,
    START,
    TOKENS,
    Built,
    both,
    clip,
    family,
    finish,
    hf,
    llama,
    noise,
    pictures,
    siglip,
    small,
    text,
    tower,
)
from tests.support.tiny_families.shared import (
    QWEN_2,
    SAM,
    SLIDING,
    SPARSE,
    pixtral,
    sized,
    stream,
    streaming,
    tiles,
)

PLACE: dict[str, Any] = {"image_token_id": IMAGE}
BESIDE_SAM: dict[str, Any] = dict(size=64, image_seq_length=16, **PLACE, **INDEX)
WHOLE: dict[str, Any] = dict(vision_feature_layer=-1, vision_feature_select_strategy="full")
MISTRAL = text("mistral", sliding_window=None)

for _name, _prefix, _text, _frames in (
    ("internvl", "InternVL", QWEN_2, 3),
    ("qianfan_ocr", "QianfanOCR", text("qwen3"), 0),
):
    pictures(
        _name,
        _prefix,
        _text,
        small(model_type=f"{_name}_vision", image_size=[32, 32], patch_size=[8, 8]),
        frames=_frames,
        image_seq_length=4,
        **PLACE,
    )
for _name, _prefix, _place in (
    ("aya_vision", "AyaVision", INDEX),
    ("cohere2_vision", "Cohere2Vision", PLACE),
):
    pictures(
        _name,
        _prefix,
        text("cohere2", head_dim=NONE, **SLIDING),
        siglip(),
        downsample_factor=2,
        alignment_intermediate_size=64,
        **_place,
    )
pictures(
    "ovis2",
    "Ovis2",
    QWEN_2,
    small(
        image_size=32, patch_size=8, vocab_size=40, hidden_stride=1, num_visual_indicator_tokens=5
    ),
    visual_indicator_token_ids=[100, 101, 102, 103, 104],
    vocab_size=120,
    hidden_size=32,
    **PLACE,
)
pictures("deepseek_vl", "DeepseekVL", llama(), siglip(), **PLACE)


family(
    "deepseek_vl_hybrid",
    "DeepseekVLHybrid",
    llama(),
    siglip(),
    inputs=lambda rows: {"pixel_values": noise(rows), "high_res_pixel_values": noise(rows, 64)},
    high_res_vision_config=dict(SAM, model_type="sam_vision_model"),
    **PLACE,
)
pictures(
    "janus",
    "Janus",
    llama(),
    small(
        intermediate_size=NONE,
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
    **PLACE,
)
pictures("got_ocr2", "GotOcr2", QWEN_2, SAM, **BESIDE_SAM)
pictures(
    "pp_chart2table",
    "PPChart2Table",
    QWEN_2,
    SAM,
    cls="GotOcr2ForConditionalGeneration",
    **BESIDE_SAM,
)
for _name, _prefix, _text, _place in (
    ("mistral3", "Mistral3", MISTRAL, INDEX),
    ("lighton_ocr", "LightOnOcr", text("qwen3"), PLACE),
):
    family(_name, _prefix, _text, pixtral(), inputs=sized, spatial_merge_size=2, **_place)
family(
    "aria",
    "Aria",
    text("aria_text", moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1),
    tower("idefics3_vision"),
    inputs=lambda rows: {
        "pixel_values": noise(rows),
        "pixel_mask": torch.ones(rows, 32, 32, dtype=torch.bool),
    },
    projector_patch_to_query_dict={16: 4},
    **INDEX,
)
pictures("llava", "Llava", llama(), clip(), **INDEX)
pictures(
    "llava:siglip",
    "Llava",
    llama(tie_word_embeddings=True),
    siglip(),
    tie_word_embeddings=True,
    **WHOLE,
    **INDEX,
)
pictures(
    "vipllava",
    "VipLlava",
    llama(),
    clip(num_hidden_layers=4),
    vision_feature_layers=[-1, -2, 1],
    vision_feature_layer=[-1, -2, 1],
    **INDEX,
)
family("llava:pixtral", "Llava", MISTRAL, pixtral(), inputs=sized, **WHOLE, **INDEX)


def tiled(rows: int, video: bool = False) -> dict[str, Any]:
    """Tiles of pictures, or a video's frames."""
    return {"pixel_values_videos": noise(rows, 32, 3)} if video else tiles(rows)


PINNED: dict[str, Any] = {"inputs": tiled, "image_grid_pinpoints": PINPOINTS}
family("llava_next", "LlavaNext", llama(), clip(), **PINNED, **INDEX)
family("llava_next_video", "LlavaNextVideo", llama(), clip(), video=True, **PINNED, **INDICES)
family("llava_onevision", "LlavaOnevision", QWEN_2, siglip(), video=True, **PINNED, **INDICES)
family(
    "video_llava",
    "VideoLlava",
    llama(),
    clip(),
    inputs=lambda rows, video: (
        {"pixel_values_videos": noise(rows, 32, 8)}
        if video
        else {"pixel_values_images": noise(rows)}
    ),
    video=True,
    **INDICES,
)
family(
    "hunyuan_vl",
    "HunYuanVL",
    text(
        rope_parameters=dict(
            rope_type="dynamic",
            alpha=1000.0,
            factor=1.0,
            rope_theta=10000.0,
            mrope_section=[1, 1, 1, 1],
        )
    ),
    small(
        out_hidden_size=32,
        patch_size=4,
        spatial_merge_size=2,
        max_image_size=32,
        text_hidden_size=32,
        img_max_token_num=64,
    ),
    inputs=lambda rows: stream(rows, False, 4, 1),
    im_start_id=START,
    im_end_id=END,
    im_newline_id=96,
    **PLACE,
)
family(
    "lfm2_vl",
    "Lfm2Vl",
    text("lfm2", layer_types=["conv", "full_attention"], block_ff_dim=64, conv_L_cache=3),
    small(model_type="siglip2_vision_model", patch_size=4, num_patches=16, vision_use_head=False),
    inputs=lambda rows: {
        "pixel_values": torch.randn(rows, 16, 48),
        "spatial_shapes": torch.tensor([[4, 4]] * rows),
        "pixel_attention_mask": torch.ones(rows, 16, dtype=torch.long),
    },
    projector_hidden_size=32,
    **PLACE,
)
_rope = {"rope_type": "default", "rope_theta": 10000.0}
_layers = {"layer_types": ["conv", "full_attention"]}
streaming(
    "lfm3_vl",
    "Lfm3Vl",
    text("lfm3", rope_parameters={"full_attention": _rope, "sliding_attention": _rope}, **_layers),
    small(
        patch_size=4, spatial_merge_size=2, temporal_patch_size=2, num_key_value_heads=2, **_layers
    ),
    projector_hidden_size=32,
    types=None,
    **TOKENS,
)

INKLING = text(
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
)
family(
    "inkling",
    "Inkling",
    {**INKLING, **SPARSE, "n_shared_experts": 1},
    dict(
        text_hidden_size=32,
        patch_size=8,
        temporal_patch_size=2,
        hidden_size=32,
        n_layers=2,
        num_attention_heads=4,
    ),
    inputs=lambda rows: {"pixel_values": torch.randn(rows, 2, 8, 8, 3)},
    audio_config=dict(n_mel_bins=8, mel_vocab_size=16, text_hidden_size=32),
    audio_token_id=AUDIO,
    image_bos_token_id=START,
    audio_bos_token_id=94,
    **PLACE,
)
family(
    "inkling2",
    "Inkling2",
    {**INKLING, "unpadded_vocab_size": 120, "n_layers_per_attn_res_block": 1},
    small(
        patch_size=4,
        spatial_merge_size=2,
        posemb_grid_size=4,
        projection_hidden_dim=32,
        text_hidden_size=32,
    ),
    inputs=lambda rows: {
        "pixel_values": torch.randn(rows * 4, 8, 8, 3),
        "image_grid_thw": torch.tensor([[1, 2, 2]] * rows),
    },
    **PLACE,
)


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
        audio_token_id=AUDIO,
        **SEEN,
    )
    grid = torch.tensor([[4, 4]] * rows)
    patches = {"pixel_values": torch.randn(rows * 16, 192), "image_grid_hw": grid}
    pixels = {"pixel_values_videos": noise(rows * 4)} if video else patches
    return finish(hf.NemotronH_Omni_Reasoning_V3(config), pixels, rows, video, wrap=False)
