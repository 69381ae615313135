"""Tiny checkpoints with random weights for the processors of `processors.py`; needs no network."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.builders.words import hf
from tests.support.families import decisive, made_once, save, text_config
from tests.support.processors import KINDS
from tests.support.tiny_families.grids import EAR, WINDOWS
from tests.support.tiny_families.parts import (
    MROPE,
    NONE,
    PINPOINTS,
    clip,
    config_of,
    model_of,
    patches,
    siglip,
    small,
    tower,
)
from tests.support.tiny_families.shared import (
    BART,
    DAVIT,
    LLAMA4_TEXT,
    LLAMA4_TOWER,
    OPT,
    PERCEIVING,
    PIX2STRUCT_TEXT,
    PIX2STRUCT_TOWER,
    blip_config,
    mllama_tower,
    qformer,
)

OMNI = "qwen2_5_omni"
"""The family whose processor is given the rate of frames; its keys are in no recorded file."""
ROPE = {"rope_type": "default", "rope_theta": 10000.0}


def _ids(words: Any, **names: str) -> dict[str, int]:
    return {name: words.convert_tokens_to_ids(word) for name, word in names.items()}


def _text(words: Any, model_type: str | None = None, **changes: Any) -> dict[str, Any]:
    kind = {"model_type": model_type} if model_type else {}
    return text_config(vocab_size=len(words), **kind, **changes)


def _marks(words: Any, **changes: Any) -> dict[str, Any]:
    known = {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
    return {"vocab_size": len(words), **known, **changes}


def _blip(words: Any) -> Any:
    return model_of(blip_config(sep_token_id=1, **_marks(words)))


def _blip_2(words: Any) -> Any:
    config = config_of(
        "Blip2",
        {**OPT, **_marks(words)},
        tower("blip_2_vision_model", num_channels=NONE, qkv_bias=True),
        qformer_config=qformer("blip_2_qformer", max_position_embeddings=NONE),
        num_query_tokens=4,
        **_ids(words, image_token_index="<image>"),
    )
    return model_of(config)


def _florence2(words: Any) -> Any:
    place = _ids(words, image_token_id="<image>")
    return model_of(config_of("Florence2", {**BART, **_marks(words)}, DAVIT, **place))


def _gemma3(words: Any) -> Any:
    text = _text(
        words,
        sliding_window=16,
        layer_types=["sliding_attention", "full_attention"],
        query_pre_attn_scalar=8,
        head_dim=8,
        rope_parameters={"sliding_attention": ROPE, "full_attention": ROPE},
    )
    tokens = _ids(words, boi_token_index="<boi>", eoi_token_index="<eoi>", image_token_id="<soft>")
    sizes = {"tie_word_embeddings": False, "mm_tokens_per_image": 4}
    return model_of(config_of("Gemma3", text, siglip(), **sizes, **tokens))


def _git(words: Any) -> Any:
    config = config_of("Git", NONE, tower("git_vision_model"), **small(), **_marks(words))
    return hf.GitForCausalLM(config)


def _glm4v(words: Any) -> Any:
    tokens = _ids(
        words,
        image_token_id="<|image|>",
        video_token_id="<|video|>",
        image_start_token_id="<|begin_of_image|>",
        image_end_token_id="<|end_of_image|>",
        video_start_token_id="<|begin_of_video|>",
        video_end_token_id="<|end_of_video|>",
    )
    text, vision = _text(words, rope_parameters=MROPE), patches(image_size=16)
    return model_of(config_of("Glm4v", text, vision, **tokens))


def _asking(words: Any, prefix: str, place: str) -> Any:
    asker = qformer(f"{prefix.lower()}_qformer", vocab_size=len(words), max_position_embeddings=512)
    config = config_of(
        prefix,
        {**OPT, **_marks(words)},
        tower(f"{prefix.lower()}_vision_model", num_channels=NONE, qkv_bias=True),
        qformer_config=asker,
        num_query_tokens=4,
        **_ids(words, **{f"{place}_token_index": f"<{place}>"}),
    )
    return model_of(config)


def _internvl(words: Any) -> Any:
    vision = tower("internvl_vision", image_size=[32, 32], patch_size=[8, 8])
    place = _ids(words, image_token_id="<IMG_CONTEXT>")
    return model_of(
        config_of("InternVL", _text(words, "qwen2"), vision, image_seq_length=4, **place)
    )


def _llama4(words: Any) -> Any:
    tokens = _ids(
        words,
        image_token_index="<|patch|>",
        boi_token_index="<|image_start|>",
        eoi_token_index="<|image_end|>",
    )
    text = _text(words, head_dim=8, **LLAMA4_TEXT)
    return model_of(
        config_of("Llama4", text, {**LLAMA4_TOWER, "pixel_shuffle_ratio": 0.5}, **tokens)
    )


def _llava_next(words: Any) -> Any:
    place = _ids(words, image_token_index="<image>")
    text = _text(words, "llama")
    return model_of(config_of("LlavaNext", text, clip(), image_grid_pinpoints=PINPOINTS, **place))


def _mllama(words: Any) -> Any:
    text = text_config(cross_attention_layers=[1], **_marks(words))
    place = _ids(words, image_token_index="<|image|>")
    model = model_of(config_of("Mllama", text, mllama_tower(max_num_tiles=4), **place))
    for name, gate in model.named_parameters():
        if "gate" in name and gate.ndim == 1:  # closed at first: no picture would be seen
            gate.data.fill_(1.0)
    return model


def _paligemma(words: Any) -> Any:
    config = config_of(
        "PaliGemma",
        _text(words, "gemma", num_key_value_heads=1, head_dim=8),
        siglip(projection_dim=32),
        tie_word_embeddings=False,
        projection_dim=32,
        hidden_size=32,
        **_ids(words, image_token_index="<image>"),
    )
    return model_of(config)


def _perception_lm(words: Any) -> Any:
    places = _ids(words, image_token_id="<|image|>", video_token_id="<|video|>")
    text = _text(words, "llama")
    return model_of(
        config_of("PerceptionLM", text, PERCEIVING, projector_pooling_ratio=2, **places)
    )


def _pix2struct(words: Any) -> Any:
    text = {**PIX2STRUCT_TEXT, **_marks(words, decoder_start_token_id=0)}
    vision = {**PIX2STRUCT_TOWER, "patch_embed_hidden_size": 8 * 8 * 3, "seq_len": 64}
    return model_of(config_of("Pix2Struct", text, vision))


MODELS: dict[str, Callable[[Any], Any]] = {
    "blip": _blip,
    "blip_2": _blip_2,
    "florence2": _florence2,
    "gemma3": _gemma3,
    "git": _git,
    "glm4v": _glm4v,
    "instructblip": lambda words: _asking(words, "InstructBlip", "image"),
    "instructblipvideo": lambda words: _asking(words, "InstructBlipVideo", "video"),
    "internvl": _internvl,
    "llama4": _llama4,
    "llava_next": _llava_next,
    "mllama": _mllama,
    "paligemma": _paligemma,
    "perception_lm": _perception_lm,
    "pix2struct": _pix2struct,
}
"""Family -> makes its tiny model for the processor's tokenizer."""


def _qwen2_5_omni(words: Any) -> Any:
    ids = {"image_token_index": "<|image_pad|>", "video_token_index": "<|video_pad|>"}
    ids |= {"vision_start_token_id": "<|vision_bos_token|>", "audio_token_index": "<|AUDIO|>"}
    config = config_of(
        "Qwen2_5OmniThinker",
        _text(words, rope_parameters=MROPE),
        patches(**WINDOWS),
        audio_config=EAR,
        **_ids(words, **ids),
    )
    return model_of(config)


@made_once
def whole_checkpoint(folder: Path, family: str) -> None:
    """The family's model and processor."""
    processor = KINDS[family].build()
    build = _qwen2_5_omni if family == OMNI else MODELS[family]
    save(folder, decisive(build(processor.tokenizer)), processor)
