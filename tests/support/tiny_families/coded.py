"""Gemmas, mixtures of experts, and families of codes and of unusual towers, in tiny sizes."""

from typing import Any

import torch

from tests.support.tiny_families.parts import (
    AUDIO,
    END,
    IMAGE,
    INDEX,
    NONE,
    SEEN,
    START,
    Built,
    both,
    config_of,
    family,
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
)
from tests.support.tiny_families.shared import (
    GROUPED,
    HYBRID,
    INDEXED,
    LATENT,
    LLAMA4_TEXT,
    LLAMA4_TOWER,
    PERCEIVING,
    QWEN_2,
    SAM,
    SLIDING,
    SPARSE,
    pixtral,
    sized,
    timm_tower,
)

DEFAULT_ROPES: dict[str, Any] = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    "full_attention": {"rope_type": "default", "rope_theta": 1000000.0},
}
WINDOWED = text(**SLIDING, query_pre_attn_scalar=8, rope_parameters=DEFAULT_ROPES)
PARTLY = {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1000000.0}
ROPES: dict[str, Any] = {**DEFAULT_ROPES, "full_attention": PARTLY}
MARKS: dict[str, Any] = {"boi_token_index": START, "eoi_token_index": END}
SPOKEN: dict[str, Any] = dict(**SEEN, audio_token_id=AUDIO, boi_token_id=START, eoi_token_id=END)
SPOKEN |= dict(boa_token_id=94, eoa_token_index=93)


def placed(rows: int, video: bool, side: int, width: int) -> dict[str, Any]:
    """Patches of square pictures with their places; two frames a video."""
    pictures = rows * 2 if video else rows
    pixels = torch.rand(pictures, side * side, width)
    line = torch.arange(side)
    places = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1).reshape(1, -1, 2)
    places = places.repeat(pictures, 1, 1)
    if video:
        frames = {"num_frames_per_video": torch.tensor([2] * rows)}
        return {"pixel_values_videos": pixels, "video_position_ids": places, **frames}
    return {"pixel_values": pixels, "image_position_ids": places}


def gemma4(name: str, prefix: str, text: Any, vision: Any, side: int, width: int) -> None:
    def inputs(rows: int, video: bool) -> dict[str, Any]:
        return placed(rows, video, side, width)

    messages: dict[str, Any] = {"video": True, "finishing": {"types": "mm_token_type_ids"}}
    family(name, prefix, text, vision, inputs=inputs, audio_config=None, **messages, **SPOKEN)


TYPED: dict[str, Any] = dict(mm_tokens_per_image=4, types="token_type_ids", wrap=True, **MARKS)
for _name in ("gemma3", "shieldgemma2"):
    pictures(_name, "Gemma3", WINDOWED, siglip(), **TYPED, **INDEX)
for _name, _text in (
    ("paligemma", text("gemma", num_key_value_heads=1)),
    (
        "paligemma:gemma2",
        text("gemma2", num_key_value_heads=1, query_pre_attn_scalar=8, sliding_window=64),
    ),
):
    tower = siglip(projection_dim=32)
    pictures(_name, "PaliGemma", _text, tower, projection_dim=32, hidden_size=32, **INDEX)
FOUR: dict[str, Any] = dict(num_hidden_layers=4, sliding_window=16)
FOUR |= dict(layer_types=["sliding_attention", "full_attention"] * 2)
POOLING = small(num_key_value_heads=4, head_dim=8, pooling_kernel_size=3, patch_size=4)
POOLING |= {"position_embedding_size": 16}
for _name, _per_layer in (("gemma4", True), ("gemma4:nople", False)):
    # With or without embeddings of each layer's own.
    _layers: dict[str, Any] = dict(
        hidden_size_per_layer_input=8 if _per_layer else 0,
        num_kv_shared_layers=2 if _per_layer else 0,
        vocab_size_per_layer_input=120,
    )
    _text = text(**FOUR, rope_parameters=ROPES, **_layers)
    gemma4(_name, "Gemma4", _text, POOLING, side=6, width=48)
UNIFIED: dict[str, Any] = dict(
    patch_size=4, pooling_kernel_size=2, mm_embed_dim=32, mm_posemb_size=16, output_proj_dims=32
)
_text = text(**SLIDING, rope_parameters=ROPES)
gemma4("gemma4_unified", "Gemma4Unified", _text, UNIFIED, side=3, width=192)


@images("gemma3n")
def gemma3n(rows: int) -> Built:
    sizes: dict[str, Any] = dict(vocab_size=116, vocab_size_per_layer_input=104, laurel_rank=8)
    sizes |= dict(hidden_size_per_layer_input=8, num_kv_shared_layers=1, altup_num_inputs=2)
    sizes |= dict(altup_active_idx=0, activation_sparsity_pattern=[0.0] * 4)
    sizes |= dict(intermediate_size=[64] * 4, rope_parameters=DEFAULT_ROPES)
    seen: dict[str, Any] = dict(model_type="gemma3n_vision", hidden_size=64, vocab_size=6)
    heard: dict[str, Any] = dict(vocab_size=6, vocab_offset=110, input_feat_size=8, hidden_size=32)
    heard |= dict(conf_num_attention_heads=4, conf_num_hidden_layers=1)
    more = dict(vision_soft_tokens_per_image=16, audio_soft_tokens_per_image=4)
    more |= dict(image_token_id=105, boi_token_id=START, eoi_token_id=104, boa_token_id=94)
    more |= dict(eoa_token_id=110, audio_token_id=111)
    config = config_of(
        "Gemma3n",
        text(**FOUR, **sizes),
        timm_tower("test_convnext", vocab_offset=104, **seen),
        audio_config={**heard, "sscp_conv_channel_size": [4, 4]},
        **more,
    )
    return finish(model_of(config), {"pixel_values": noise(rows, 128)}, rows, place=105)


@images("t5gemma2")
def t5gemma2(rows: int) -> Built:
    marks = {**INDEX, "eoi_token_index": END}
    encoder = {"text_config": WINDOWED, "vision_config": siglip(), "mm_tokens_per_image": 4}
    encoder = {**encoder, **INDEX, **MARKS}
    model = model_of(config_of("T5Gemma2", encoder=encoder, decoder=WINDOWED, **marks))
    model.generation_config.decoder_start_token_id = 1
    return finish(model, {"pixel_values": noise(rows)}, rows, total=4 * rows)


MERGED: dict[str, Any] = {"spatial_merge_size": 2}
DEEPSEEK: dict[str, Any] = {"num_key_value_heads": 4, **GROUPED, **SPARSE}


def through_sam(name: str, prefix: str, text: Any, **encoder: Any) -> None:
    """Register a family whose tower stands behind that of SAM."""
    sam = dict(SAM, downsample_channels=[16, 32])
    vision = {"sam_config": sam, "encoder_config": small(**encoder)}
    pictures(name, prefix, text, vision, size=64, image_token_id=IMAGE)


_encoder = dict(num_key_value_heads=2, max_position_embeddings=512, vocab_size=120)
through_sam("deepseek_ocr2", "DeepseekOcr2", text(**DEEPSEEK), **_encoder, max_window_layers=2)
through_sam(
    "unlimited_ocr",
    "UnlimitedOcr",
    text(**DEEPSEEK, sliding_window=16, layer_types=["reference_sliding_attention"] * 2),
    image_size=32,
    patch_size=8,
)
_more: dict[str, Any] = dict(qk_rope_head_dim=8, head_dim=NONE, first_k_dense_replace=1)
_text = text(**LATENT, **SPARSE, **INDEXED, **_more)
family("mistral_large4", "MistralLarge4", _text, pixtral(), inputs=sized, **MERGED, **INDEX)
pictures("llama4", "Llama4", text(**LLAMA4_TEXT), LLAMA4_TOWER, **MARKS, **INDEX)


@both("molmo2")
def molmo2(rows: int, video: bool) -> Built:
    heads = {"num_key_value_heads": 4, "head_dim": 8}
    vision = small(num_hidden_layers=3, image_size=[32, 32], patch_size=8, **heads)
    adapter = small(num_hidden_layers=NONE, text_hidden_size=32, **heads)
    adapter |= {"vision_feature_layer": [-1, -2]}
    ids = dict(image_start_token_id=START, image_end_token_id=END, image_patch_id=IMAGE)
    ids |= dict(low_res_image_start_token_id=94, frame_start_token_id=93, frame_end_token_id=92)
    reader = text(additional_vocab_size=16)
    config = config_of("Molmo2", reader, vision, adapter_config=adapter, **ids)
    pool = torch.tensor([[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]])
    pictures = rows * 3 if video else rows
    pool = torch.cat([pool + 16 * b for b in range(pictures)])
    kind, suffix, grid = ("video", "_videos", [3, 2, 2]) if video else ("image", "", [2, 2, 0, 0])
    given = {
        f"pixel_values{suffix}": torch.randn(pictures, 16, 192),
        f"{kind}_token_pooling": pool,
        f"{kind}_grids": torch.tensor([grid] * rows),
    }
    return finish(model_of(config), given, rows, video, place=IMAGE, types="mm_token_type_ids")


def sliced(rows: int, video: bool) -> dict[str, Any]:
    """Slices of a picture one after the other."""
    suffix = "_videos" if video else ""
    return {
        f"pixel_values{suffix}": torch.randn(1, 3, 4, rows * 64 * 4),
        f"target_sizes{suffix}": torch.tensor([[8, 8]] * rows, dtype=torch.int32),
    }


for _name, _prefix, _types in (
    ("minicpmv4_6", "MiniCPMV4_6", None),
    ("minicpmv4_7", "MiniCPMV4_7", "mm_token_type_ids"),
    ("minicpm_ocr", "MiniCPMOcr", None),
):
    family(
        _name,
        _prefix,
        text("qwen3_5_text", **HYBRID),
        small(num_hidden_layers=3, image_size=32, patch_size=4),
        inputs=sliced,
        video=True,
        finishing={"wrap": False, "types": _types},
        insert_layer_id=1,
        tie_word_embeddings=False,
        **SEEN,
    )
VOCABULARY = {f"<|visual token {code:06d}|>": 20 + code for code in range(16)}
LETTERS = {
    "IMGIMG" + "".join(chr(65 + int(digit)) for digit in str(code)) + "Z": 20 + code
    for code in range(16)
}

CODED: dict[str, Any] = dict(base_channels=32, channel_multiplier=[1, 2], num_res_blocks=1)
_codes: dict[str, Any] = dict(**CODED, codebook_size=16, embed_dim=4, latent_channels=4)
_codes |= dict(attn_resolutions=[1], hidden_size=64, num_attention_heads=1)
_codes |= dict(temporal_downsample_factor=1)
_words: dict[str, int] = {"<image>": IMAGE, "<|extra_200|>": 98, **VOCABULARY}
_given: dict[str, Any] = {"inputs": sized, "vq_config": _codes, "vocabulary_map": _words}
family("emu3", "Emu3", text(head_dim=NONE), **_given)
_codes = dict(**CODED, embed_dim=8, num_embeddings=16, latent_channels=32, resolution=16)
_given = {"vq_config": _codes, "vocabulary_map": {"<image>": IMAGE, **LETTERS}, "size": 16}
pictures("chameleon", "Chameleon", **text(head_dim=NONE), **_given)


@images("fuyu")
def fuyu(rows: int) -> Built:
    reader = text("persimmon", num_key_value_heads=NONE, head_dim=NONE)
    config = config_of("Fuyu", reader, image_size=32, patch_size=8, image_token_id=IMAGE)
    model = hf.FuyuForCausalLM(config)
    inputs = {"pixel_values": torch.randn(rows, 16, 192)}
    return finish(model, inputs, rows, wrap=False, total=16 * rows)


_inside = dict(inference_mode=True, embed_dims=[32, 32, 32, 32], layers=[1, 1, 1, 1])
_tower = timm_tower("fastvit_mci0", do_pooling=True, hidden_size=64, model_args=_inside)
pictures("fast_vlm", "FastVlm", QWEN_2, _tower, size=64, **INDEX)


def perceiving() -> Any:
    return config_of("PerceptionLM", llama(), PERCEIVING, projector_pooling_ratio=2, **SEEN)


@both("perception_lm")
def perception_lm(rows: int, video: bool) -> Built:
    frames = 3 if video else 1
    model, name = model_of(perceiving()), "pixel_values_videos" if video else "pixel_values"
    pixels = {name: noise(rows, 32, frames)}
    return finish(model, pixels, rows, video, total=rows * frames * 4, wrap=False)
