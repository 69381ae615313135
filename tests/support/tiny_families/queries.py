"""Families that ask a picture by queries, and those that have no place to be cut, in tiny sizes."""

from typing import Any

import torch

from tests.support.tiny_families.parts import (
    IMAGE,
    INDEX,
    NONE,
    PINPOINTS,
    VIDEO,
    Built,
    both,
    config_of,
    decisive,
    family,
    finish,
    hf,
    images,
    llama,
    model_of,
    noise,
    pictures,
    prompt_inputs,
    siglip,
    small,
    text,
    tower,
)
from tests.support.tiny_families.shared import (
    BART,
    DAVIT,
    OPT,
    PIX2STRUCT_TEXT,
    PIX2STRUCT_TOWER,
    ROUTED,
    SPARSE,
    blip_config,
    mllama_tower,
    qformer,
    tiles,
)

PLACE: dict[str, Any] = {"image_token_id": IMAGE}
MARKS: dict[str, Any] = dict(vocab_size=120, bos_token_id=1, eos_token_id=2, pad_token_id=0)

T5: dict[str, Any] = dict(
    model_type="t5", vocab_size=120, d_model=32, d_kv=8, d_ff=64, num_layers=2
)
T5 |= dict(num_decoder_layers=2, num_heads=4, pad_token_id=0, eos_token_id=2)
T5 |= dict(decoder_start_token_id=0)


def asking(name: str, prefix: str, text: Any, video: bool = False) -> None:
    """Register a family that asks a picture, or each frame of a video, by four queries."""
    kind, place = ("video", VIDEO) if video else ("image", IMAGE)
    model_type = "blip_2" if prefix == "Blip2" else prefix.lower()

    def build(rows: int) -> Built:
        config = config_of(
            prefix,
            text,
            tower(f"{model_type}_vision_model", qkv_bias=True),
            qformer_config=qformer(f"{model_type}_qformer"),
            num_query_tokens=4,
            **{f"{kind}_token_index": place, f"{kind}_token_id": place},
        )
        inputs = {"pixel_values": noise(rows, 32, 4) if video else noise(rows)}
        if prefix != "Blip2":
            inputs["qformer_input_ids"] = torch.tensor([[1, 5, 6, 7]] * rows)
            inputs["qformer_attention_mask"] = torch.ones(rows, 4, dtype=torch.long)
        total = 4 * rows * (4 if video else 1)
        return finish(model_of(config), inputs, rows, video, wrap=False, total=total)

    images(name)(build)


for _suffix, _text in (("", {**OPT, **MARKS}), (":t5", T5)):
    asking(f"blip_2{_suffix}", "Blip2", _text)
    asking(f"instructblip{_suffix}", "InstructBlip", _text)
    asking(f"instructblipvideo{_suffix}", "InstructBlipVideo", _text, video=True)


_text = {**BART, **MARKS, "max_position_embeddings": 128, "decoder_start_token_id": 2}
pictures("florence2", "Florence2", _text, DAVIT, size=64, **PLACE)


def masked(name: str, prefix: str, *given: Any, frames: int = 0, **config: Any) -> None:
    """Register a family of which a row has two pictures, with a mask over their pixels; one with
    `frames` is given those of a video as so many pictures."""

    def build(rows: int, video: bool = False) -> Built:
        count = frames if video else 2
        model = model_of(config_of(prefix, *given, image_token_id=IMAGE, **config))
        mask = torch.ones(rows, count, 32, 32, dtype=torch.bool)
        pixels = {"pixel_values": noise(rows, 32, count), "pixel_attention_mask": mask}

        def middle(places: int) -> list[int]:
            return [*[IMAGE] * (places // 2), 3, *[IMAGE] * (places // 2)]

        return finish(model, pixels, rows, wrap=False, middle=middle)

    (both if frames else images)(name)(build)


masked("smolvlm", "SmolVLM", llama(), tower("smolvlm_vision"), frames=4, scale_factor=2)
masked("idefics3", "Idefics3", llama(), tower("idefics3_vision"), scale_factor=2)
_asking: dict[str, Any] = dict(model_type="idefics2_perceiver", hidden_size=32)
_asking |= dict(resampler_n_latents=4, resampler_depth=2, resampler_n_heads=4)
_asking |= dict(resampler_head_dim=8, num_key_value_heads=2)
_text = text("mistral", sliding_window=None)
masked("idefics2", "Idefics2", _text, tower("idefics2_vision"), perceiver_config=_asking)
_vision = small(num_hidden_layers=3, image_size=32, patch_size=4, out_hidden_size=32)
_vision |= dict(scale_factor=4, deepstack_visual_indexes=[0, 1], use_fine_route=True)
family(
    "granite_docling",
    "GraniteDocling",
    text(num_hidden_layers=4),
    _vision,
    inputs=lambda rows: {
        "pixel_values": noise(rows, 32, 2),
        "pixel_attention_mask": torch.ones(rows, 2, dtype=torch.bool),
    },
    pad_token_id=0,
    **PLACE,
)


@images("granite4_vision")
def granite4_vision(rows: int) -> Built:
    config = config_of(
        "Granite4Vision",
        text(num_hidden_layers=4, head_dim=NONE),
        siglip(num_hidden_layers=4, hidden_size=64),
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
        **INDEX,
    )
    inputs, model = tiles(rows), model_of(config)
    with torch.no_grad():
        found = decisive(model).model.get_image_features(**inputs).deepstack_features[0][1]
    return finish(model, inputs, rows, wrap=False, total=sum(map(len, found)))


_text = text(sliding_window=16, num_sliding_attention_heads=4, n_routed_experts=4)
_text |= dict(share_expert_dim=16, **ROUTED, **SPARSE)
_text |= {"layer_types": ["full_attention", "sliding_attention"]}
family(
    "step3p7",
    "Step3p7",
    _text,
    small(image_size=32, patch_size=4, mlp_ratio=2.0, max_position_embeddings=64),
    inputs=lambda rows: {
        "pixel_values": noise(rows, 32),
        "pixel_values_local": noise(rows, 16),
        "num_local_patches": [1] * rows,
    },
    **PLACE,
)


def message_of(model: Any, rows: int, pixels: dict[str, Any], prompt: list[int]) -> Built:
    """The model with a prompt for each row, the second one token longer."""
    prompts = [[*prompt, *([5, 6, 7] if row == 0 else [11, 12, 13, 14])] for row in range(rows)]
    return decisive(model), {**prompt_inputs(prompts), **pixels}


@images("blip")
def blip(rows: int) -> Built:
    model = model_of(blip_config(sep_token_id=2, **MARKS))
    return message_of(model, rows, {"pixel_values": noise(rows)}, [1])


@images("git")
def git(rows: int) -> Built:
    vision = small(image_size=32, patch_size=8)
    config = config_of("Git", NONE, vision, max_position_embeddings=128, **MARKS, **small())
    return message_of(hf.GitForCausalLM(config), rows, {"pixel_values": noise(rows)}, [1])


@images("kosmos-2")
def kosmos(rows: int) -> Built:
    sizes = dict(vocab_size=120, max_position_embeddings=128, embed_dim=32, layers=2, ffn_dim=64)
    vision = small(image_size=32, patch_size=8)
    config = config_of("Kosmos2", {**sizes, "attention_heads": 4}, vision, latent_query_num=4)
    prompt = [3, *[IMAGE] * 4]
    built, inputs = message_of(model_of(config), rows, {"pixel_values": noise(rows)}, prompt)
    inputs["image_embeds_position_mask"] = (inputs["input_ids"] == IMAGE).long()
    return built, inputs


@images("mllama")
def crossed(rows: int) -> Built:
    reader = text("mllama_text_model", head_dim=NONE, cross_attention_layers=[1])
    seen = mllama_tower(max_num_tiles=1, supported_aspect_ratios=[[1, 1]])
    config = config_of("Mllama", reader, seen, **INDEX)
    pixels = {
        "pixel_values": noise(rows)[:, None, None],
        "aspect_ratio_ids": torch.ones(rows, 1, dtype=torch.long),
        "aspect_ratio_mask": torch.ones(rows, 1, 1, dtype=torch.long),
    }
    built, inputs = message_of(model_of(config), rows, pixels, [1, IMAGE])
    length = inputs["input_ids"].shape[1]
    inputs["cross_attention_mask"] = torch.ones(rows, length, 1, 1, dtype=torch.long)
    return built, inputs


@images("pix2struct")
def flattened(rows: int) -> Built:
    vision = {**PIX2STRUCT_TOWER, "patch_embed_hidden_size": 16, "seq_len": 16}
    config = config_of("Pix2Struct", {**PIX2STRUCT_TEXT, "vocab_size": 120}, vision)
    places = torch.arange(16).reshape(1, 16, 1).expand(rows, -1, 2) % 4 + 1.0
    flat = torch.cat([places, torch.randn(rows, 16, 16)], -1)
    model = decisive(model_of(config))
    return model, {"flattened_patches": flat, "attention_mask": torch.ones(rows, 16)}


@images("vision-encoder-decoder")
def encoder_decoder(rows: int) -> Built:
    reader: dict[str, Any] = dict(model_type="gpt2", vocab_size=120, n_embd=32, n_layer=2, n_head=4)
    reader |= dict(n_positions=64, add_cross_attention=True, is_decoder=True)
    ids = dict(decoder_start_token_id=1, pad_token_id=0, eos_token_id=2)
    config = hf.VisionEncoderDecoderConfig(encoder=tower("vit"), decoder=reader, **ids)
    return decisive(hf.VisionEncoderDecoderModel(config)), {"pixel_values": noise(rows)}
