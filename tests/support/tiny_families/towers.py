"""Families that take pictures as one tensor, in tiles or in patches, in tiny sizes."""

from collections.abc import Callable
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
    config_of,
    finish,
    hf,
    images,
    llama,
    model_of,
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
        image_size=32,
        patch_size=8,
        vocab_size=40,
        hidden_stride=1,
        num_visual_indicator_tokens=5,
    ),
    visual_indicator_token_ids=[100, 101, 102, 103, 104],
    vocab_size=120,
    hidden_size=32,
    **PLACE,
)
pictures("deepseek_vl", "DeepseekVL", llama(), siglip(), **PLACE)


@images("deepseek_vl_hybrid")
def deepseek_vl_hybrid(rows: int) -> Built:
    sharp = dict(SAM, model_type="sam_vision_model")
    config = config_of("DeepseekVLHybrid", llama(), siglip(), high_res_vision_config=sharp, **PLACE)
    model = model_of(config)
    pixels = {"pixel_values": noise(rows), "high_res_pixel_values": noise(rows, 64)}
    return finish(model, pixels, rows, wrap=False)


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
sized("mistral3", "Mistral3", MISTRAL, pixtral(), spatial_merge_size=2, **INDEX)
sized("lighton_ocr", "LightOnOcr", text("qwen3"), pixtral(), spatial_merge_size=2, **PLACE)


@images("aria")
def aria(rows: int) -> Built:
    config = config_of(
        "Aria",
        text("aria_text", moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1),
        tower("idefics3_vision"),
        projector_patch_to_query_dict={16: 4},
        **INDEX,
    )
    model, mask = model_of(config), torch.ones(rows, 32, 32, dtype=torch.bool)
    pixels = {"pixel_values": noise(rows), "pixel_mask": mask}
    return finish(model, pixels, rows, wrap=False)


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
sized("llava:pixtral", "Llava", MISTRAL, pixtral(), **WHOLE, **INDEX)


def tiled(
    name: str,
    prefix: str,
    *given: Any,
    video: Callable[[int], dict[str, Any]] | None = None,
    **config: Any,
) -> None:
    """Register a family that takes tiles of pictures; `video` makes what it takes of one."""

    def build(rows: int, is_video: bool = False) -> Built:
        model = model_of(config_of(prefix, *given, image_grid_pinpoints=PINPOINTS, **config))
        pixels = video(rows) if video and is_video else tiles(rows)
        return finish(model, pixels, rows, is_video, wrap=False)

    (both if video else images)(name)(build)


def frames(rows: int) -> dict[str, Any]:
    return {"pixel_values_videos": torch.randn(rows, 3, 3, 32, 32)}


tiled("llava_next", "LlavaNext", llama(), clip(), **INDEX)
tiled("llava_next_video", "LlavaNextVideo", llama(), clip(), video=frames, **INDICES)
tiled("llava_onevision", "LlavaOnevision", QWEN_2, siglip(), video=frames, **INDICES)


@both("video_llava")
def video_llava(rows: int, video: bool) -> Built:
    model = model_of(config_of("VideoLlava", llama(), clip(), **INDICES))
    name = "pixel_values_videos" if video else "pixel_values_images"
    pixels = {name: torch.randn(rows, 8, 3, 32, 32) if video else noise(rows)}
    return finish(model, pixels, rows, video, wrap=False)


@images("hunyuan_vl")
def hunyuan_vl(rows: int) -> Built:
    rope = dict(rope_type="dynamic", alpha=1000.0, factor=1.0, rope_theta=10000.0)
    config = config_of(
        "HunYuanVL",
        text(rope_parameters={**rope, "mrope_section": [1, 1, 1, 1]}),
        small(
            out_hidden_size=32,
            patch_size=4,
            spatial_merge_size=2,
            max_image_size=32,
            text_hidden_size=32,
            img_max_token_num=64,
        ),
        im_start_id=START,
        im_end_id=END,
        im_newline_id=96,
        **PLACE,
    )
    return finish(model_of(config), stream(rows, False, 4, 1), rows, wrap=False)


@images("lfm2_vl")
def lfm2_vl(rows: int) -> Built:
    config = config_of(
        "Lfm2Vl",
        text("lfm2", layer_types=["conv", "full_attention"], block_ff_dim=64, conv_L_cache=3),
        small(
            model_type="siglip2_vision_model", patch_size=4, num_patches=16, vision_use_head=False
        ),
        projector_hidden_size=32,
        **PLACE,
    )
    model = model_of(config)
    pixels = {
        "pixel_values": torch.randn(rows, 16, 48),
        "spatial_shapes": torch.tensor([[4, 4]] * rows),
        "pixel_attention_mask": torch.ones(rows, 16, dtype=torch.long),
    }
    return finish(model, pixels, rows, wrap=False)


@both("lfm3_vl")
def lfm3_vl(rows: int, video: bool) -> Built:
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    layers = {"layer_types": ["conv", "full_attention"]}
    config = config_of(
        "Lfm3Vl",
        text("lfm3", rope_parameters={"full_attention": rope, "sliding_attention": rope}, **layers),
        small(
            patch_size=4,
            spatial_merge_size=2,
            temporal_patch_size=2,
            num_key_value_heads=2,
            **layers,
        ),
        projector_hidden_size=32,
        **TOKENS,
    )
    return finish(model_of(config), stream(rows, video), rows, video)


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


@images("inkling")
def inkling(rows: int) -> Built:
    config = config_of(
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
        audio_config=dict(n_mel_bins=8, mel_vocab_size=16, text_hidden_size=32),
        audio_token_id=AUDIO,
        image_bos_token_id=START,
        audio_bos_token_id=94,
        **PLACE,
    )
    model = model_of(config)
    return finish(model, {"pixel_values": torch.randn(rows, 2, 8, 8, 3)}, rows, wrap=False)


@images("inkling2")
def inkling2(rows: int) -> Built:
    config = config_of(
        "Inkling2",
        {**INKLING, "unpadded_vocab_size": 120, "n_layers_per_attn_res_block": 1},
        small(
            patch_size=4,
            spatial_merge_size=2,
            posemb_grid_size=4,
            projection_hidden_dim=32,
            text_hidden_size=32,
        ),
        **PLACE,
    )
    grid = torch.tensor([[1, 2, 2]] * rows)
    inputs = {"pixel_values": torch.randn(rows * 4, 8, 8, 3), "image_grid_thw": grid}
    return finish(model_of(config), inputs, rows, wrap=False)


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
