"""Tiny models with random weights of families that are run whole, by replay or with the prompt in
mind, each for its processor's tokenizer."""

from typing import Any

from tests.support.families import hf, text_config, tower
from tests.support.tiny_families.shared import qformer

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}


def _heads(**changes: Any) -> dict[str, Any]:
    return {**SMALL, "num_attention_heads": 4, **changes}


def _marks(words: Any, **changes: Any) -> dict[str, Any]:
    known = {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
    return {"vocab_size": len(words), **known, **changes}


def blip(words: Any) -> Any:
    text = _heads(encoder_hidden_size=32, projection_dim=32, sep_token_id=1, **_marks(words))
    config = hf.BlipConfig(
        text_config=text,
        vision_config=_heads(projection_dim=32, image_size=32, patch_size=8),
        projection_dim=32,
        image_text_hidden_size=32,
    )
    return hf.BlipForConditionalGeneration(config)


def florence2(words: Any) -> Any:
    text = {
        "model_type": "bart",
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "max_position_embeddings": 512,
        "decoder_start_token_id": 1,
        "forced_eos_token_id": None,
        **_marks(words),
    }
    vision = {
        "depths": [1, 1, 1, 1],
        "patch_size": [7, 3, 3, 3],
        "patch_stride": [4, 2, 2, 2],
        "patch_padding": [3, 1, 1, 1],
        "patch_prenorm": [False, True, True, True],
        "embed_dim": [8, 8, 16, 32],
        "num_heads": [2, 2, 2, 2],
        "num_groups": [2, 2, 2, 2],
        "window_size": 4,
        "projection_dim": 32,
        "max_temporal_embeddings": 4,
        "max_position_embeddings": 8,
        "drop_path_rate": 0.0,
    }
    place = words.convert_tokens_to_ids("<image>")
    config = hf.Florence2Config(text_config=text, vision_config=vision, image_token_id=place)
    return hf.Florence2ForConditionalGeneration(config)


def _asking(words: Any, prefix: str, place: str) -> Any:
    reader = {
        "model_type": "opt",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "ffn_dim": 64,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
        "word_embed_proj_dim": 32,
        **_marks(words),
    }
    asker = qformer(f"{prefix.lower()}_qformer", vocab_size=len(words), max_position_embeddings=512)
    config = getattr(hf, f"{prefix}Config")(
        vision_config=tower(f"{prefix.lower()}_vision_model", qkv_bias=True),
        qformer_config=asker,
        text_config=reader,
        num_query_tokens=4,
        **{f"{place}_token_index": words.convert_tokens_to_ids(f"<{place}>")},
    )
    return getattr(hf, f"{prefix}ForConditionalGeneration")(config)


def instructblip(words: Any) -> Any:
    return _asking(words, "InstructBlip", "image")


def instructblipvideo(words: Any) -> Any:
    return _asking(words, "InstructBlipVideo", "video")


def llama4(words: Any) -> Any:
    vision = {
        **_heads(image_size=32, patch_size=8, vision_output_dim=32, intermediate_size=128),
        "projector_input_dim": 32,
        "projector_output_dim": 32,
        "pixel_shuffle_ratio": 0.5,
    }
    text = text_config(
        vocab_size=len(words),
        head_dim=8,
        intermediate_size_mlp=64,
        num_local_experts=2,
        num_experts_per_tok=1,
        attention_chunk_size=64,
        moe_layers=[1],
    )
    ids = words.convert_tokens_to_ids
    config = hf.Llama4Config(
        vision_config=vision,
        text_config=text,
        image_token_index=ids("<|patch|>"),
        boi_token_index=ids("<|image_start|>"),
        eoi_token_index=ids("<|image_end|>"),
    )
    return hf.Llama4ForConditionalGeneration(config)


def mllama(words: Any) -> Any:
    vision = {
        **SMALL,
        "num_global_layers": 1,
        "attention_heads": 4,
        "vision_output_dim": 64,
        "image_size": 32,
        "patch_size": 8,
        "max_num_tiles": 4,
        "intermediate_layers_indices": [0],
    }
    text = text_config(cross_attention_layers=[1], **_marks(words))
    config = hf.MllamaConfig(
        text_config=text,
        vision_config=vision,
        image_token_index=words.convert_tokens_to_ids("<|image|>"),
    )
    model = hf.MllamaForConditionalGeneration(config)
    for name, gate in model.named_parameters():
        if "gate" in name and gate.ndim == 1:  # closed at first: no picture would be seen
            gate.data.fill_(1.0)
    return model


def pix2struct(words: Any) -> Any:
    common = {"hidden_size": 32, "d_kv": 8, "d_ff": 64}
    text = {**common, "num_layers": 2, "num_heads": 4, **_marks(words, decoder_start_token_id=0)}
    vision = {
        **common,
        "patch_embed_hidden_size": 8 * 8 * 3,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "seq_len": 64,
    }
    config = hf.Pix2StructConfig(text_config=text, vision_config=vision)
    return hf.Pix2StructForConditionalGeneration(config)
