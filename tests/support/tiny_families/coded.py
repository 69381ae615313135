"""Gemmas, mixtures of experts, and families of codes and of unusual towers, in tiny sizes."""

from typing import Any

import torch

from tests.support.tiny_families.parts import (
    AUDIO,
    END,
    IMAGE,
    INDEX,
    NONE,
    START,
    VIDEO,
    Built,
    both,
    finish,
    hf,
    images,
    llama,
    noise,
    pictures,
    siglip,
    small,
    text,
)
from tests.support.tiny_families.shared import (
    HYBRID,
    LATENT,
    PERCEIVING,
    SAM,
    pixtral,
    sized,
    timm_tower,
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

for _name in ("gemma3", "shieldgemma2"):
    pictures(
        _name,
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


def sliced(name: str, prefix: str) -> None:
    """Register a family that takes slices of a picture one after the other."""

    def build(rows: int, video: bool) -> Built:
        config = getattr(hf, f"{prefix}Config")(
            text_config=text("qwen3_5_text", **HYBRID),
            vision_config=small(num_hidden_layers=3, image_size=32, patch_size=4),
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            insert_layer_id=1,
            tie_word_embeddings=False,
        )
        suffix = "_videos" if video else ""
        inputs = {
            f"pixel_values{suffix}": torch.randn(1, 3, 4, rows * 64 * 4),
            f"target_sizes{suffix}": torch.tensor([[8, 8]] * rows, dtype=torch.int32),
        }
        model = getattr(hf, f"{prefix}ForConditionalGeneration")(config)
        types = "mm_token_type_ids" if name == "minicpmv4_7" else None
        return finish(model, inputs, rows, video, wrap=False, types=types)

    both(name)(build)


VOCABULARY = {f"<|visual token {code:06d}|>": 20 + code for code in range(16)}

sliced("minicpmv4_6", "MiniCPMV4_6")

sliced("minicpmv4_7", "MiniCPMV4_7")

sliced("minicpm_ocr", "MiniCPMOcr")


@images("emu3")
def emu3(rows: int) -> Built:
    config = hf.Emu3Config(
        text_config=text(head_dim=NONE),
        vq_config=dict(
            codebook_size=16,
            embed_dim=4,
            latent_channels=4,
            base_channels=32,
            channel_multiplier=[1, 2],
            num_res_blocks=1,
            attn_resolutions=[1],
            hidden_size=64,
            num_attention_heads=1,
            temporal_downsample_factor=1,
        ),
        vocabulary_map={"<image>": IMAGE, "<|extra_200|>": 98, **VOCABULARY},
    )
    inputs = dict(pixel_values=noise(rows, 16), image_sizes=torch.tensor([[16, 16]] * rows))
    return finish(hf.Emu3ForConditionalGeneration(config), inputs, rows, wrap=False)


pictures(
    "chameleon",
    "ChameleonForConditionalGeneration",
    lambda: hf.ChameleonConfig(
        **text(head_dim=NONE),
        vq_config=dict(
            embed_dim=8,
            num_embeddings=16,
            latent_channels=32,
            resolution=16,
            base_channels=32,
            channel_multiplier=[1, 2],
            num_res_blocks=1,
        ),
        vocabulary_map={
            "<image>": IMAGE,
            **{
                "IMGIMG" + "".join(chr(65 + int(d)) for d in str(inputs)) + "Z": 20 + inputs
                for inputs in range(16)
            },
        },
    ),
    size=16,
)


@images("fuyu")
def fuyu(rows: int) -> Built:
    config = hf.FuyuConfig(
        text_config=small(
            model_type="persimmon",
            vocab_size=120,
            max_position_embeddings=512,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        ),
        image_size=32,
        patch_size=8,
        image_token_id=IMAGE,
    )
    return finish(
        hf.FuyuForCausalLM(config),
        dict(pixel_values=torch.randn(rows, 16, 192)),
        rows,
        wrap=False,
        total=16 * rows,
    )


@images("fast_vlm")
def fast_vlm(rows: int) -> Built:
    config = hf.FastVlmConfig(
        vision_config=timm_tower(
            "fastvit_mci0",
            do_pooling=True,
            hidden_size=64,
            model_args=dict(inference_mode=True, embed_dims=[32, 32, 32, 32], layers=[1, 1, 1, 1]),
        ),
        text_config=text("qwen2", head_dim=NONE),
        **INDEX,
    )
    return finish(
        hf.FastVlmForConditionalGeneration(config),
        dict(pixel_values=noise(rows, 64)),
        rows,
        wrap=False,
    )


def perceiving() -> Any:
    return hf.PerceptionLMConfig(
        vision_config=PERCEIVING,
        text_config=llama(),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        projector_pooling_ratio=2,
    )


@both("perception_lm")
def perception_lm(rows: int, video: bool) -> Built:
    frames = 3 if video else 1
    return finish(
        hf.PerceptionLMForConditionalGeneration(perceiving()),
        {"pixel_values_videos" if video else "pixel_values": noise(rows, 32, frames)},
        rows,
        video,
        total=rows * frames * 4,
        wrap=False,
    )
