"""Families of the Gemma line, in tiny sizes."""

from typing import Any

import torch

from tests.support.tiny_families.parts import (
    AUDIO,
    END,
    IMAGE,
    INDEX,
    START,
    VIDEO,
    Built,
    both,
    finish,
    hf,
    images,
    noise,
    pictures,
    siglip,
    small,
    text,
)

WINDOWED: dict[str, Any] = dict(
    sliding_window=16,
    layer_types=["sliding_attention", "full_attention"],
    query_pre_attn_scalar=8,
    rope_parameters={
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        "full_attention": {"rope_type": "default", "rope_theta": 1000000.0},
    },
)

ROPES: dict[str, Any] = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    "full_attention": {
        "rope_type": "proportional",
        "partial_rotary_factor": 0.25,
        "rope_theta": 1000000.0,
    },
}


def positions(rows: int, h: Any = 6, w: Any = 6) -> torch.Tensor:
    p = torch.stack(torch.meshgrid(torch.arange(w), torch.arange(h), indexing="xy"), -1).reshape(
        1, -1, 2
    )
    return p.repeat(rows, 1, 1)


def gemma4(rows: int, video: bool, per_layer: bool) -> Built:
    """With or without embeddings of each layer's own."""
    config = hf.Gemma4Config(
        text_config=text(
            num_hidden_layers=4,
            layer_types=["sliding_attention", "full_attention"] * 2,
            sliding_window=16,
            rope_parameters=ROPES,
            hidden_size_per_layer_input=8 if per_layer else 0,
            vocab_size_per_layer_input=120,
            num_kv_shared_layers=2 if per_layer else 0,
        ),
        vision_config=small(
            num_key_value_heads=4,
            head_dim=8,
            pooling_kernel_size=3,
            patch_size=4,
            position_embedding_size=16,
        ),
        audio_config=None,
        **SPOKEN,
    )
    inputs = placed(rows, video, side=6, width=48)
    model = hf.Gemma4ForConditionalGeneration(config)
    return finish(model, inputs, rows, video, types="mm_token_type_ids")


def placed(rows: int, video: bool, side: int, width: int) -> dict[str, Any]:
    """Patches of square pictures with their places; two frames a video."""
    pictures = rows * 2 if video else rows
    pixels = torch.rand(pictures, side * side, width)
    places = positions(pictures, side, side)
    if video:
        frames = torch.tensor([2] * rows)
        return {
            "pixel_values_videos": pixels,
            "video_position_ids": places,
            "num_frames_per_video": frames,
        }
    return {"pixel_values": pixels, "image_position_ids": places}


SPOKEN: dict[str, Any] = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "audio_token_id": AUDIO,
    "boi_token_id": START,
    "eoi_token_id": END,
    "boa_token_id": 94,
    "eoa_token_index": 93,
}
UNIFIED: dict[str, Any] = dict(
    patch_size=4, pooling_kernel_size=2, mm_embed_dim=32, mm_posemb_size=16, output_proj_dims=32
)

pictures(
    "gemma3",
    "Gemma3ForConditionalGeneration",
    lambda: hf.Gemma3Config(
        text_config=text(**WINDOWED),
        vision_config=siglip(),
        mm_tokens_per_image=4,
        boi_token_index=START,
        eoi_token_index=END,
        **INDEX,
    ),
    types="token_type_ids",
    wrap=True,
)

pictures(
    "shieldgemma2",
    "Gemma3ForConditionalGeneration",
    lambda: hf.Gemma3Config(
        text_config=text(**WINDOWED),
        vision_config=siglip(),
        mm_tokens_per_image=4,
        boi_token_index=START,
        eoi_token_index=END,
        **INDEX,
    ),
    types="token_type_ids",
    wrap=True,
)

pictures(
    "paligemma",
    "PaliGemmaForConditionalGeneration",
    lambda: hf.PaliGemmaConfig(
        text_config=text("gemma", num_key_value_heads=1),
        vision_config=siglip(projection_dim=32),
        projection_dim=32,
        hidden_size=32,
        **INDEX,
    ),
)

pictures(
    "paligemma:gemma2",
    "PaliGemmaForConditionalGeneration",
    lambda: hf.PaliGemmaConfig(
        text_config=text(
            "gemma2", num_key_value_heads=1, query_pre_attn_scalar=8, sliding_window=64
        ),
        vision_config=siglip(projection_dim=32),
        projection_dim=32,
        hidden_size=32,
        **INDEX,
    ),
)

both("gemma4")(lambda rows, video: gemma4(rows, video, True))

both("gemma4:nople")(lambda rows, video: gemma4(rows, video, False))


@both("gemma4_unified")
def gemma4_unified(rows: int, video: bool) -> Built:
    config = hf.Gemma4UnifiedConfig(
        text_config=text(
            layer_types=["sliding_attention", "full_attention"],
            sliding_window=16,
            rope_parameters=ROPES,
        ),
        vision_config=dict(UNIFIED),
        audio_config=None,
        **SPOKEN,
    )
    inputs = placed(rows, video, side=3, width=192)
    model = hf.Gemma4UnifiedForConditionalGeneration(config)
    return finish(model, inputs, rows, video, types="mm_token_type_ids")


@images("gemma3n")
def gemma3n(rows: int) -> Built:
    t = text(
        vocab_size=116,
        vocab_size_per_layer_input=104,
        hidden_size_per_layer_input=8,
        num_hidden_layers=4,
        num_kv_shared_layers=1,
        layer_types=["sliding_attention", "full_attention"] * 2,
        intermediate_size=[64] * 4,
        sliding_window=16,
        activation_sparsity_pattern=[0.0] * 4,
        laurel_rank=8,
        altup_num_inputs=2,
        altup_active_idx=0,
        rope_parameters=WINDOWED["rope_parameters"],
    )
    config = hf.Gemma3nConfig(
        text_config=t,
        vision_config=dict(
            model_type="gemma3n_vision",
            architecture="test_convnext",
            do_pooling=False,
            hidden_size=64,
            vocab_size=6,
            vocab_offset=104,
            num_classes=2,
            model_args={},
        ),
        audio_config=dict(
            vocab_size=6,
            vocab_offset=110,
            input_feat_size=8,
            hidden_size=32,
            conf_num_attention_heads=4,
            conf_num_hidden_layers=1,
            sscp_conv_channel_size=[4, 4],
        ),
        vision_soft_tokens_per_image=16,
        audio_soft_tokens_per_image=4,
        image_token_id=105,
        boi_token_id=START,
        eoi_token_id=104,
        boa_token_id=94,
        eoa_token_id=110,
        audio_token_id=111,
    )
    return finish(
        hf.Gemma3nForConditionalGeneration(config),
        dict(pixel_values=noise(rows, 128)),
        rows,
        place=105,
    )


@images("t5gemma2")
def t5gemma2(rows: int) -> Built:
    R = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        "full_attention": {"rope_type": "default", "rope_theta": 1000000.0},
    }
    t = text(
        layer_types=["sliding_attention", "full_attention"],
        query_pre_attn_scalar=8,
        sliding_window=16,
        rope_parameters=R,
        vocab_size=120,
    )
    config = hf.T5Gemma2Config(
        encoder=dict(
            text_config=dict(t),
            vision_config=siglip(),
            mm_tokens_per_image=4,
            image_token_index=IMAGE,
            boi_token_index=START,
            eoi_token_index=END,
        ),
        decoder=dict(t),
        image_token_index=IMAGE,
        eoi_token_index=END,
    )
    model = hf.T5Gemma2ForConditionalGeneration(config)
    model.generation_config.decoder_start_token_id = 1
    return finish(model, dict(pixel_values=noise(rows)), rows, wrap=True, total=4 * rows)
