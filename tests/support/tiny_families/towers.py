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

SEQUENCE: dict[str, Any] = dict(image_seq_length=4, **PLACE)
for _name, _prefix, _text, _frames in (
    ("internvl", "InternVL", QWEN_2, 3),
    ("qianfan_ocr", "QianfanOCR", text("qwen3"), 0),
):
    _vision = small(model_type=f"{_name}_vision", image_size=[32, 32], patch_size=[8, 8])
    pictures(_name, _prefix, _text, _vision, frames=_frames, **SEQUENCE)
ALIGNED: dict[str, Any] = {"downsample_factor": 2, "alignment_intermediate_size": 64}
for _name, _prefix, _place in (
    ("aya_vision", "AyaVision", INDEX),
    ("cohere2_vision", "Cohere2Vision", PLACE),
):
    _text = text("cohere2", head_dim=NONE, **SLIDING)
    pictures(_name, _prefix, _text, siglip(), **ALIGNED, **_place)
_vision = small(image_size=32, patch_size=8, vocab_size=40, hidden_stride=1)
_vision |= {"num_visual_indicator_tokens": 5}
_ids: dict[str, Any] = {"visual_indicator_token_ids": [100, 101, 102, 103, 104], **PLACE}
pictures("ovis2", "Ovis2", QWEN_2, _vision, vocab_size=120, hidden_size=32, **_ids)
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
_vision = small(intermediate_size=NONE, image_size=32, patch_size=8, projection_dim=32, depth=2)
_vision |= {"num_image_tokens": 16, "mlp_ratio": 2}
_codes: dict[str, Any] = dict(embed_dim=8, num_embeddings=16, latent_channels=32, base_channels=32)
_codes |= dict(channel_multiplier=[1, 1], num_res_blocks=1, num_patches=4, projection_dim=32)
_codes |= dict(image_token_embed_dim=32, num_hidden_layers=1)
pictures("janus", "Janus", llama(), _vision, vq_config=_codes, **PLACE)
pictures("got_ocr2", "GotOcr2", QWEN_2, SAM, **BESIDE_SAM)
_class = "GotOcr2ForConditionalGeneration"
pictures("pp_chart2table", "PPChart2Table", QWEN_2, SAM, cls=_class, **BESIDE_SAM)
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
TIED: dict[str, Any] = {"tie_word_embeddings": True}
pictures("llava:siglip", "Llava", llama(**TIED), siglip(), **TIED, **WHOLE, **INDEX)
_layers: Any = {"vision_feature_layers": [-1, -2, 1], "vision_feature_layer": [-1, -2, 1]}
pictures("vipllava", "VipLlava", llama(), clip(num_hidden_layers=4), **_layers, **INDEX)
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
_turned: dict[str, Any] = dict(rope_type="dynamic", alpha=1000.0, factor=1.0, rope_theta=10000.0)
_vision = small(out_hidden_size=32, patch_size=4, spatial_merge_size=2, max_image_size=32)
family(
    "hunyuan_vl",
    "HunYuanVL",
    text(rope_parameters={**_turned, "mrope_section": [1, 1, 1, 1]}),
    {**_vision, "text_hidden_size": 32, "img_max_token_num": 64},
    inputs=lambda rows: stream(rows, False, 4, 1),
    finishing={"wrap": False, "types": "mm_token_type_ids"},
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
_ropes = {"full_attention": _rope, "sliding_attention": _rope}
_text = text("lfm3", rope_parameters=_ropes, **_layers)
_vision = small(patch_size=4, spatial_merge_size=2, temporal_patch_size=2, **_layers)
_vision |= {"num_key_value_heads": 2}
streaming("lfm3_vl", "Lfm3Vl", _text, _vision, projector_hidden_size=32, types=None, **TOKENS)

INKLING = text(swa_num_attention_heads=4, swa_num_key_value_heads=2, swa_head_dim=8, d_rel=4)
INKLING |= dict(sliding_window_size=16, rel_extent=64, layer_types=["hybrid_sliding", "hybrid"])
INKLING |= dict(moe_intermediate_size=16, n_routed_experts=4, num_experts_per_tok=2)
_vision = dict(text_hidden_size=32, patch_size=8, temporal_patch_size=2, hidden_size=32)
family(
    "inkling",
    "Inkling",
    {**INKLING, **SPARSE, "n_shared_experts": 1},
    {**_vision, "n_layers": 2, "num_attention_heads": 4},
    inputs=lambda rows: {"pixel_values": torch.randn(rows, 2, 8, 8, 3)},
    audio_config=dict(n_mel_bins=8, mel_vocab_size=16, text_hidden_size=32),
    audio_token_id=AUDIO,
    image_bos_token_id=START,
    audio_bos_token_id=94,
    **PLACE,
)
_vision = small(patch_size=4, spatial_merge_size=2, posemb_grid_size=4, text_hidden_size=32)
family(
    "inkling2",
    "Inkling2",
    {**INKLING, "unpadded_vocab_size": 120, "n_layers_per_attn_res_block": 1},
    {**_vision, "projection_hidden_dim": 32},
    inputs=lambda rows: {
        "pixel_values": torch.randn(rows * 4, 8, 8, 3),
        "image_grid_thw": torch.tensor([[1, 2, 2]] * rows),
    },
    **PLACE,
)


@both("nemotron_h_omni")
def nemotron_h_omni(rows: int, video: bool) -> Built:
    mamba: dict[str, Any] = dict(num_hidden_layers=NONE, mamba_num_heads=4, mamba_head_dim=8)
    mamba |= dict(n_groups=1, ssm_state_size=8, chunk_size=8, expand=1, conv_kernel=2)
    vision = small(model_type="radio", image_size=32, patch_size=8, video_temporal_patch_size=2)
    sizes: dict[str, Any] = dict(force_image_size=32, downsample_ratio=0.5, vision_hidden_size=32)
    sizes |= dict(projector_hidden_size=32, audio_token_id=AUDIO, **SEEN)
    config = hf.NemotronH_Omni_Reasoning_V3_Config(
        vision_config={**vision, "torch_dtype": "float32"},
        text_config=text("nemotron_h", layers_block_type=["mamba", "attention"], **mamba),
        audio_config=None,
        **sizes,
    )
    grid = torch.tensor([[4, 4]] * rows)
    patches = {"pixel_values": torch.randn(rows * 16, 192), "image_grid_hw": grid}
    pixels = {"pixel_values_videos": noise(rows * 4)} if video else patches
    return finish(hf.NemotronH_Omni_Reasoning_V3(config), pixels, rows, video, wrap=False)
