"""Tiny models with random weights of families that are run whole, by replay or with the prompt in
mind, each for its processor's tokenizer."""

from typing import Any

from tests.support.families import hf, text_config
from tests.support.tiny_families.parts import NONE, small, tower
from tests.support.tiny_families.shared import BART, DAVIT, OPT, qformer


def marks(words: Any, **changes: Any) -> dict[str, Any]:
    known = {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
    return {"vocab_size": len(words), **known, **changes}


def blip(words: Any) -> Any:
    text = small(encoder_hidden_size=32, projection_dim=32, sep_token_id=1, **marks(words))
    config = hf.BlipConfig(
        text_config=text,
        vision_config=small(projection_dim=32, image_size=32, patch_size=8),
        projection_dim=32,
        image_text_hidden_size=32,
    )
    return hf.BlipForConditionalGeneration(config)


def florence2(words: Any) -> Any:
    place = words.convert_tokens_to_ids("<image>")
    text = {**BART, **marks(words)}
    config = hf.Florence2Config(text_config=text, vision_config=DAVIT, image_token_id=place)
    return hf.Florence2ForConditionalGeneration(config)


def _asking(words: Any, prefix: str, place: str) -> Any:
    asker = qformer(f"{prefix.lower()}_qformer", vocab_size=len(words), max_position_embeddings=512)
    config = getattr(hf, f"{prefix}Config")(
        vision_config=tower(f"{prefix.lower()}_vision_model", num_channels=NONE, qkv_bias=True),
        qformer_config=asker,
        text_config={**OPT, **marks(words)},
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
        **small(image_size=32, patch_size=8, vision_output_dim=32, intermediate_size=128),
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
    vision = small(
        num_attention_heads=NONE,
        num_global_layers=1,
        attention_heads=4,
        vision_output_dim=64,
        image_size=32,
        patch_size=8,
        max_num_tiles=4,
        intermediate_layers_indices=[0],
    )
    text = text_config(cross_attention_layers=[1], **marks(words))
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
    text = {**common, "num_layers": 2, "num_heads": 4, **marks(words, decoder_start_token_id=0)}
    vision = {
        **common,
        "patch_embed_hidden_size": 8 * 8 * 3,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "seq_len": 64,
    }
    config = hf.Pix2StructConfig(text_config=text, vision_config=vision)
    return hf.Pix2StructForConditionalGeneration(config)
