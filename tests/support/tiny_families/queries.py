"""Families that ask a picture by queries, and those that have no place to be cut, in tiny sizes."""

from typing import Any

import torch

from tests.support.tiny_families.parts import (
    IMAGE,
    NONE,
    PINPOINTS,
    VIDEO,
    Built,
    both,
    decisive,
    finish,
    hf,
    images,
    llama,
    noise,
    prompt_inputs,
    siglip,
    small,
    text,
    tower,
)
from tests.support.tiny_families.shared import qformer, tiles

OPT: dict[str, Any] = dict(
    model_type="opt",
    hidden_size=32,
    num_hidden_layers=2,
    ffn_dim=64,
    num_attention_heads=4,
    max_position_embeddings=512,
    word_embed_proj_dim=32,
    vocab_size=120,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)

T5: dict[str, Any] = dict(
    model_type="t5",
    vocab_size=120,
    d_model=32,
    d_kv=8,
    d_ff=64,
    num_layers=2,
    num_decoder_layers=2,
    num_heads=4,
    pad_token_id=0,
    eos_token_id=2,
    decoder_start_token_id=0,
)


def blip_2(rows: int, text: Any) -> Built:
    config = hf.Blip2Config(
        vision_config=tower("blip_2_vision_model", qkv_bias=True),
        qformer_config=qformer("blip_2_qformer"),
        text_config=text,
        num_query_tokens=4,
        image_token_index=IMAGE,
        image_token_id=IMAGE,
    )
    return finish(
        hf.Blip2ForConditionalGeneration(config),
        dict(pixel_values=noise(rows)),
        rows,
        wrap=False,
        total=4 * rows,
    )


def instructblip(rows: int, text: Any, video: bool = False) -> Built:
    prefix, kind = ("InstructBlipVideo", "video") if video else ("InstructBlip", "image")
    place = VIDEO if video else IMAGE
    config = getattr(hf, f"{prefix}Config")(
        vision_config=tower(f"{prefix.lower()}_vision_model", qkv_bias=True),
        qformer_config=qformer(f"{prefix.lower()}_qformer"),
        text_config=text,
        num_query_tokens=4,
        **{f"{kind}_token_index": place, f"{kind}_token_id": place},
    )
    inputs = {
        "pixel_values": noise(rows, 32, 4) if video else noise(rows),
        "qformer_input_ids": torch.tensor([[1, 5, 6, 7]] * rows),
        "qformer_attention_mask": torch.ones(rows, 4, dtype=torch.long),
    }
    model = getattr(hf, f"{prefix}ForConditionalGeneration")(config)
    total = 4 * rows * (4 if video else 1)
    return finish(model, inputs, rows, video, wrap=False, total=total)


def florence2(rows: int) -> Built:
    config = hf.Florence2Config(
        text_config=dict(
            model_type="bart",
            vocab_size=120,
            d_model=32,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=64,
            decoder_ffn_dim=64,
            max_position_embeddings=128,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=2,
            forced_eos_token_id=None,
        ),
        vision_config=dict(
            depths=[1, 1, 1, 1],
            patch_size=[7, 3, 3, 3],
            patch_stride=[4, 2, 2, 2],
            patch_padding=[3, 1, 1, 1],
            patch_prenorm=[False, True, True, True],
            embed_dim=[8, 8, 16, 32],
            num_heads=[2, 2, 2, 2],
            num_groups=[2, 2, 2, 2],
            window_size=4,
            projection_dim=32,
            max_temporal_embeddings=4,
            max_position_embeddings=8,
            drop_path_rate=0.0,
        ),
        image_token_id=IMAGE,
    )
    return finish(
        hf.Florence2ForConditionalGeneration(config),
        dict(pixel_values=noise(rows, 64)),
        rows,
        wrap=False,
    )


images("blip_2")(lambda rows: blip_2(rows, dict(OPT)))

images("blip_2:t5")(lambda rows: blip_2(rows, dict(T5)))

images("instructblip")(lambda rows: instructblip(rows, dict(OPT)))

images("instructblip:t5")(lambda rows: instructblip(rows, dict(T5)))

images("instructblipvideo")(lambda rows: instructblip(rows, dict(OPT), True))

images("instructblipvideo:t5")(lambda rows: instructblip(rows, dict(T5), True))

images("florence2")(florence2)


def masked_pictures(model: Any, rows: int, count: int) -> Built:
    """Build a model whose rows have `count` pictures each, with a mask over their pixels."""
    return finish(
        model,
        dict(
            pixel_values=noise(rows, 32, count),
            pixel_attention_mask=torch.ones(rows, count, 32, 32, dtype=torch.bool),
        ),
        rows,
        wrap=False,
        middle=lambda n: [IMAGE] * (n // 2) + [3] + [IMAGE] * (n // 2),
    )


@both("smolvlm")
def smolvlm(rows: int, video: bool) -> Built:
    """Its processor gives it the frames of a video as tiles of a picture."""
    count = 4 if video else 2
    config = hf.SmolVLMConfig(
        vision_config=tower("smolvlm_vision"),
        text_config=llama(),
        image_token_id=IMAGE,
        scale_factor=2,
    )
    return masked_pictures(hf.SmolVLMForConditionalGeneration(config), rows, count)


@images("idefics3")
def idefics3(rows: int) -> Built:
    config = hf.Idefics3Config(
        vision_config=tower("idefics3_vision"),
        text_config=llama(),
        image_token_id=IMAGE,
        scale_factor=2,
    )
    return masked_pictures(hf.Idefics3ForConditionalGeneration(config), rows, 2)


@images("idefics2")
def idefics2(rows: int) -> Built:
    config = hf.Idefics2Config(
        vision_config=tower("idefics2_vision"),
        text_config=text("mistral", sliding_window=None),
        image_token_id=IMAGE,
        perceiver_config=dict(
            model_type="idefics2_perceiver",
            hidden_size=32,
            resampler_n_latents=4,
            resampler_depth=2,
            resampler_n_heads=4,
            resampler_head_dim=8,
            num_key_value_heads=2,
        ),
    )
    return masked_pictures(hf.Idefics2ForConditionalGeneration(config), rows, 2)


@images("granite_docling")
def granite_docling(rows: int) -> Built:
    config = hf.GraniteDoclingConfig(
        text_config=text(num_hidden_layers=4),
        vision_config=dict(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=32,
            patch_size=4,
            out_hidden_size=32,
            scale_factor=4,
            deepstack_visual_indexes=[0, 1],
            use_fine_route=True,
        ),
        image_token_id=IMAGE,
        pad_token_id=0,
    )
    return finish(
        hf.GraniteDoclingForConditionalGeneration(config),
        dict(
            pixel_values=noise(rows, 32, 2),
            pixel_attention_mask=torch.ones(rows, 2, dtype=torch.bool),
        ),
        rows,
        wrap=False,
    )


@images("granite4_vision")
def granite4_vision(rows: int) -> Built:
    config = hf.Granite4VisionConfig(
        vision_config=siglip(num_hidden_layers=4, hidden_size=64),
        text_config=text(num_hidden_layers=4, head_dim=NONE),
        image_token_index=IMAGE,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        image_grid_pinpoints=PINPOINTS,
        image_seq_length=16,
        downsample_rate="2/4",
        deepstack_layer_map=[[-3, 0], [-2, 1]],
        spatial_vision_layer=-1,
        spatial_target_layers=[2, 3],
        projector_dropout=0.0,
        qformer_config=qformer(
            "blip_2_qformer", hidden_size=64, num_attention_heads=1, encoder_hidden_size=64
        ),
    )
    inputs = tiles(rows)
    model = hf.Granite4VisionForConditionalGeneration(config)
    with torch.no_grad():
        o = decisive(model).eval().model.get_image_features(**inputs)
    return finish(
        model, inputs, rows, wrap=False, total=sum(x.shape[0] for x in o.deepstack_features[0][1])
    )


@images("step3p7")
def step3p7(rows: int) -> Built:
    config = hf.Step3p7Config(
        vision_config=small(image_size=32, patch_size=4, mlp_ratio=2.0, max_position_embeddings=64),
        text_config=text(
            layer_types=["full_attention", "sliding_attention"],
            sliding_window=16,
            num_sliding_attention_heads=4,
            moe_intermediate_size=16,
            n_routed_experts=4,
            num_experts_per_tok=2,
            share_expert_dim=16,
            mlp_layer_types=["dense", "sparse"],
            num_local_experts=4,
        ),
        image_token_id=IMAGE,
    )
    return finish(
        hf.Step3p7ForConditionalGeneration(config),
        dict(
            pixel_values=noise(rows, 32),
            pixel_values_local=noise(rows, 16),
            num_local_patches=[1] * rows,
        ),
        rows,
        wrap=False,
    )


def told(model: Any, rows: int, pixels: dict[str, Any], prompt: list[int]) -> Built:
    """The model with a prompt for each row, the second one token longer."""
    prompts = [[*prompt, *([5, 6, 7] if row == 0 else [11, 12, 13, 14])] for row in range(rows)]
    return decisive(model), {**prompt_inputs(prompts), **pixels}


@images("blip")
def blip(rows: int) -> Built:
    config = hf.BlipConfig(
        text_config=small(
            encoder_hidden_size=32,
            projection_dim=32,
            vocab_size=120,
            bos_token_id=1,
            eos_token_id=2,
            sep_token_id=2,
            pad_token_id=0,
        ),
        vision_config=small(projection_dim=32, image_size=32, patch_size=8),
        projection_dim=32,
        image_text_hidden_size=32,
    )
    model = hf.BlipForConditionalGeneration(config)
    return told(model, rows, {"pixel_values": noise(rows)}, [1])


@images("git")
def git(rows: int) -> Built:
    config = hf.GitConfig(
        vision_config=small(image_size=32, patch_size=8),
        vocab_size=120,
        max_position_embeddings=128,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        **small(),
    )
    return told(hf.GitForCausalLM(config), rows, {"pixel_values": noise(rows)}, [1])


@images("kosmos-2")
def kosmos(rows: int) -> Built:
    config = hf.Kosmos2Config(
        text_config={
            "vocab_size": 120,
            "max_position_embeddings": 128,
            "embed_dim": 32,
            "layers": 2,
            "ffn_dim": 64,
            "attention_heads": 4,
        },
        vision_config=small(image_size=32, patch_size=8),
        latent_query_num=4,
    )
    model = hf.Kosmos2ForConditionalGeneration(config)
    built, inputs = told(model, rows, {"pixel_values": noise(rows)}, [3, *[IMAGE] * 4])
    inputs["image_embeds_position_mask"] = (inputs["input_ids"] == IMAGE).long()
    return built, inputs


@images("mllama")
def crossed(rows: int) -> Built:
    config = hf.MllamaConfig(
        text_config=text("mllama_text_model", head_dim=NONE, cross_attention_layers=[1]),
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_global_layers": 1,
            "attention_heads": 4,
            "vision_output_dim": 64,
            "image_size": 32,
            "patch_size": 8,
            "max_num_tiles": 1,
            "intermediate_layers_indices": [0],
            "supported_aspect_ratios": [[1, 1]],
        },
        image_token_index=IMAGE,
    )
    pixels = {
        "pixel_values": noise(rows)[:, None, None],
        "aspect_ratio_ids": torch.ones(rows, 1, dtype=torch.long),
        "aspect_ratio_mask": torch.ones(rows, 1, 1, dtype=torch.long),
    }
    built, inputs = told(hf.MllamaForConditionalGeneration(config), rows, pixels, [1, IMAGE])
    length = inputs["input_ids"].shape[1]
    inputs["cross_attention_mask"] = torch.ones(rows, length, 1, 1, dtype=torch.long)
    return built, inputs


@images("pix2struct")
def flattened(rows: int) -> Built:
    config = hf.Pix2StructConfig(
        text_config={
            "vocab_size": 120,
            "hidden_size": 32,
            "d_kv": 8,
            "d_ff": 64,
            "num_layers": 2,
            "num_heads": 4,
        },
        vision_config={
            "hidden_size": 32,
            "patch_embed_hidden_size": 16,
            "d_ff": 64,
            "d_kv": 8,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "seq_len": 16,
        },
    )
    places = torch.arange(16).reshape(1, 16, 1).expand(rows, -1, 2) % 4 + 1.0
    flat = torch.cat([places, torch.randn(rows, 16, 16)], -1)
    model = decisive(hf.Pix2StructForConditionalGeneration(config))
    return model, {"flattened_patches": flat, "attention_mask": torch.ones(rows, 16)}


@images("vision-encoder-decoder")
def encoder_decoder(rows: int) -> Built:
    config = hf.VisionEncoderDecoderConfig(
        encoder=tower("vit"),
        decoder={
            "model_type": "gpt2",
            "vocab_size": 120,
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 64,
            "add_cross_attention": True,
            "is_decoder": True,
        },
        decoder_start_token_id=1,
        pad_token_id=0,
        eos_token_id=2,
    )
    return decisive(hf.VisionEncoderDecoderModel(config)), {"pixel_values": noise(rows)}
