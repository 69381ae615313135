"""Families that have no boundary between their halves: the whole model sees pixels and prompt."""

from typing import Any

import torch

from tests.support.tiny_families.parts import (
    IMAGE,
    NONE,
    Built,
    decisive,
    hf,
    images,
    noise,
    prompt_inputs,
    small,
    text,
    tower,
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
