"""Checkpoints with the published numbers that decide what fits a context (`published_sizes.py`).

Widths, and the layers of towers, are tiny, and so are the tokenizers. The image processors have the
published sizes.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from tests.support import cogvlm2, processors
from tests.support.builders.processors import llava_processor
from tests.support.builders.words import (
    LLAVA_TEMPLATE,
    QWEN_MARKS,
    QWEN_TEMPLATE,
    hf,
    template,
    tokenizer,
    words,
)
from tests.support.checkpoints import ROPE
from tests.support.families import (
    change_config,
    change_weights,
    decisive,
    made_once,
    qwen_ids,
    save,
    text_config,
)
from tests.support.published_sizes import PUBLISHED, PublishedSizes
from tests.support.tiny_families.grids import WINDOWS
from tests.support.tiny_families.parts import (
    INTERLEAVED,
    MROPE,
    NONE,
    config_of,
    model_of,
    patches,
    small,
    tower,
)
from tests.support.tiny_families.shared import mllama_tower

LAYERS = 2
"""Layers of a language model that captions."""
PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
"""Of LLaVA-NeXT: widths and heights of the images that tiles are cut from."""
ONEVISION_PINPOINTS = [[384 * a, 384 * b] for a in range(1, 7) for b in range(1, 7)]
Made = tuple[Any, Any]
"""A processor and a model."""


def _text(sizes: PublishedSizes, model_type: str, layers: int, **changes: Any) -> dict[str, Any]:
    """Return a language model with the published context and vocabulary."""
    rope = {"rope_type": sizes.rope_type, "rope_theta": 10000.0, "factor": sizes.rope_factor}
    given = {
        "max_position_embeddings": sizes.stated_context,
        "vocab_size": sizes.vocabulary,
        "num_hidden_layers": layers,
        **({"model_type": model_type} if model_type else {}),
        **({"rope_parameters": rope} if sizes.rope_factor > 1 else {}),
    }
    return text_config(**{**given, **changes})


def _tower(sizes: PublishedSizes, model_type: str, **changes: Any) -> dict[str, Any]:
    return tower(model_type, **{"image_size": sizes.edge, "patch_size": sizes.patch, **changes})


def _clip(sizes: PublishedSizes) -> dict[str, Any]:
    return _tower(sizes, "clip_vision_model", projection_dim=32)


def _siglip(sizes: PublishedSizes, **changes: Any) -> dict[str, Any]:
    return _tower(sizes, "siglip_vision_model", vision_use_head=False, **changes)


def _made(
    processor: Any,
    prefix: str,
    text: dict[str, Any],
    vision: dict[str, Any],
    tokens: Mapping[str, str],
    **more: Any,
) -> Made:
    """Return a processor and the model of its family, which knows some tokens by their ids."""
    id_of = processor.tokenizer.convert_tokens_to_ids
    named = {name: id_of(token) for name, token in tokens.items()}
    return processor, model_of(config_of(prefix, text, vision, **more, **named))


IMAGE = {"image_token_index": "<image>"}
BOTH = {**IMAGE, "video_token_index": "<video>"}


def _blip(sizes: PublishedSizes, layers: int) -> Made:
    marks = {"vocab_size": sizes.vocabulary, "bos_token_id": 2, "eos_token_id": 1}
    text = small(
        encoder_hidden_size=32,
        projection_dim=32,
        max_position_embeddings=sizes.stated_context,
        num_hidden_layers=layers,
        pad_token_id=0,
        sep_token_id=1,
        **marks,
    )
    vision = small(projection_dim=32, image_size=sizes.edge, patch_size=sizes.patch)
    shown = {"projection_dim": 32, "image_text_hidden_size": 32}
    return _made(processors.blip(sizes.edge), "Blip", text, vision, {}, **shown)


def _gemma3(sizes: PublishedSizes, layers: int) -> Made:
    # Each sixth layer sees the whole context, through RoPE that is stretched eightfold.
    kinds = ["full_attention" if not (at + 1) % 6 else "sliding_attention" for at in range(layers)]
    stretched = {"rope_type": "linear", "rope_theta": 1_000_000.0, "factor": 8.0}
    text = _text(
        sizes,
        "",
        layers,
        sliding_window=1024,
        layer_types=[*kinds[:-1], "full_attention"],
        query_pre_attn_scalar=8,
        head_dim=8,
        rope_parameters={"sliding_attention": ROPE, "full_attention": stretched},
    )
    tokens = {"boi_token_index": "<boi>", "eoi_token_index": "<eoi>", "image_token_id": "<soft>"}
    pooled = {"tie_word_embeddings": False, "mm_tokens_per_image": sizes.frame_tokens}
    processor = processors.gemma3(sizes.edge, sizes.frame_tokens)
    return _made(processor, "Gemma3", text, _siglip(sizes), tokens, **pooled)


def _glm4v(sizes: PublishedSizes, layers: int) -> Made:
    tokens = {
        "image_token_id": "<|image|>",
        "video_token_id": "<|video|>",
        "video_start_token_id": "<|begin_of_video|>",
        "video_end_token_id": "<|end_of_video|>",
        "image_start_token_id": "<|begin_of_image|>",
        "image_end_token_id": "<|end_of_image|>",
    }
    processor = processors.glm4v(sizes.patch, 12544, 9633792, 47040000)
    text = _text(sizes, "", layers, rope_parameters=MROPE)
    vision = patches(image_size=336, patch_size=sizes.patch, spatial_merge_size=sizes.merge)
    return _made(processor, "Glm4v", text, vision, tokens)


def _idefics3(sizes: PublishedSizes, layers: int) -> Made:
    tokens = (sizes.edge // sizes.patch // sizes.merge) ** 2
    return _smol(processors.idefics3(sizes.edge, 4, tokens), "Idefics3", sizes, layers)


def _smol(processor: Any, prefix: str, sizes: PublishedSizes, layers: int) -> Made:
    text, vision = _text(sizes, "llama", layers), _tower(sizes, f"{prefix.lower()}_vision")
    tokens = {"image_token_id": "<image>"}
    return _made(processor, prefix, text, vision, tokens, scale_factor=sizes.merge)


def _smolvlm(sizes: PublishedSizes, layers: int) -> Made:
    published = {
        "size": {"longest_edge": 4 * sizes.edge},
        "max_image_size": {"longest_edge": sizes.edge},
    }
    sampling = {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": sizes.edge}}
    processor = hf.SmolVLMProcessor(
        image_processor=hf.SmolVLMImageProcessor(**published),
        tokenizer=words(*processors.smol_marks(4), image="<image>", video="<video>"),
        video_processor=hf.SmolVLMVideoProcessor(**published, video_sampling=sampling),
        image_seq_len=sizes.frame_tokens,
        chat_template=template("<image>", "<video>"),
    )
    return _smol(processor, "SmolVLM", sizes, layers)


def _internvl(sizes: PublishedSizes, layers: int) -> Made:
    vision = _tower(
        sizes,
        "internvl_vision",
        image_size=[sizes.edge, sizes.edge],
        patch_size=[sizes.patch, sizes.patch],
    )
    return _made(
        processors.internvl(sizes.edge, sizes.frame_tokens, 12),
        "InternVL",
        _text(sizes, "qwen2", layers),
        vision,
        {"image_token_id": "<IMG_CONTEXT>"},
        image_seq_length=sizes.frame_tokens,
    )


def _llava(sizes: PublishedSizes, layers: int) -> Made:
    marks = tokenizer(("<image>", "<s>"), LLAVA_TEMPLATE, bos="<s>")
    processor = llava_processor(marks, sizes.edge, sizes.patch)
    return _made(processor, "Llava", _text(sizes, "llama", layers), _clip(sizes), IMAGE)


def _llava_next(sizes: PublishedSizes, layers: int) -> Made:
    processor = processors.llava_next(sizes.edge, sizes.patch, PINPOINTS)
    text, tiles = _text(sizes, "llama", layers), {"image_grid_pinpoints": PINPOINTS}
    return _made(processor, "LlavaNext", text, _clip(sizes), IMAGE, **tiles)


def _llava_next_video(sizes: PublishedSizes, layers: int) -> Made:
    processor = processors.llava_next_video(sizes.edge, sizes.patch, PINPOINTS)
    tiles = {"image_grid_pinpoints": PINPOINTS, "spatial_pool_stride": sizes.merge}
    text = _text(sizes, "llama", layers)
    return _made(processor, "LlavaNextVideo", text, _clip(sizes), BOTH, **tiles)


def _llava_onevision(sizes: PublishedSizes, layers: int) -> Made:
    size, tiles = processors.square(sizes.edge), {"image_grid_pinpoints": ONEVISION_PINPOINTS}
    processor = hf.LlavaOnevisionProcessor(
        image_processor=hf.LlavaOnevisionImageProcessor(size=size, **tiles),
        tokenizer=tokenizer(("<image>", "<video>"), LLAVA_TEMPLATE),
        video_processor=hf.LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=(sizes.edge // sizes.patch) ** 2,
        vision_feature_select_strategy="full",
        chat_template=LLAVA_TEMPLATE,
    )
    text, ratio = _text(sizes, "qwen2", layers), {"vision_aspect_ratio": "anyres_max_9"}
    return _made(processor, "LlavaOnevision", text, _siglip(sizes), BOTH, **tiles, **ratio)


def pixtral_processor(sizes: PublishedSizes) -> Any:
    return processors.pixtral(sizes.edge, sizes.patch, sizes.merge)


def _mistral3(sizes: PublishedSizes, layers: int) -> Made:
    return _made(
        pixtral_processor(sizes),
        "Mistral3",
        _text(sizes, "mistral", layers, sliding_window=None),
        small(model_type="pixtral", image_size=sizes.edge, patch_size=sizes.patch, head_dim=8),
        {"image_token_index": "[IMG]"},
        spatial_merge_size=sizes.merge,
    )


def _mllama(sizes: PublishedSizes, layers: int) -> Made:
    text = text_config(
        cross_attention_layers=[1],
        vocab_size=sizes.vocabulary,
        max_position_embeddings=sizes.stated_context,
        num_hidden_layers=layers,
        bos_token_id=2,
        pad_token_id=0,
    )
    tower_sizes = {"image_size": sizes.edge, "patch_size": sizes.patch}
    vision, tokens = mllama_tower(max_num_tiles=4) | tower_sizes, {"image_token_index": "<|image|>"}
    return _made(processors.mllama(sizes.edge), "Mllama", text, vision, tokens)


def _paligemma(sizes: PublishedSizes, layers: int) -> Made:
    return _made(
        processors.paligemma(sizes.edge, sizes.frame_tokens),
        "PaliGemma",
        _text(sizes, "gemma2", layers, num_key_value_heads=1, head_dim=8, sliding_window=4096),
        _siglip(sizes, projection_dim=32),
        IMAGE,
        tie_word_embeddings=False,
        projection_dim=32,
        hidden_size=32,
    )


QWEN_SIZES: dict[str, tuple[dict[str, int], dict[str, int]]] = {
    "Qwen2VL": ({"shortest_edge": 3136, "longest_edge": 12845056},) * 2,
    "Qwen2_5_VL": ({"shortest_edge": 3136, "longest_edge": 12845056},) * 2,
    "Qwen3VL": (
        {"shortest_edge": 65536, "longest_edge": 16777216},
        {"shortest_edge": 4096, "longest_edge": 25165824},
    ),
}
"""Prefix of the classes → least and most pixels of an image, and of a video."""


def _qwen(prefix: str, sizes: PublishedSizes, layers: int) -> Made:
    made = tokenizer(QWEN_MARKS, QWEN_TEMPLATE)
    image, video = QWEN_SIZES[prefix]
    common = {"patch_size": sizes.patch, "temporal_patch_size": 2, "merge_size": sizes.merge}
    is_third = prefix == "Qwen3VL"
    video_class = hf.Qwen3VLVideoProcessor if is_third else hf.Qwen2VLVideoProcessor
    bounds = {} if is_third else {"cap_pixels_per_frame": False}
    processor = getattr(hf, f"{prefix}Processor")(
        image_processor=hf.Qwen2VLImageProcessor(size=image, **common),
        tokenizer=made,
        video_processor=video_class(size=video, **common, **bounds),
        chat_template=QWEN_TEMPLATE,
    )
    tower_sizes = {"patch_size": sizes.patch, "spatial_merge_size": sizes.merge}
    rope, text, vision = MROPE, {}, {}
    if prefix == "Qwen2VL":
        absent = {"intermediate_size": NONE, "out_hidden_size": NONE}
        vision = patches(embed_dim=32, mlp_ratio=2, **absent, **tower_sizes)
    elif is_third:
        rope, text = INTERLEAVED, {"num_hidden_layers": max(3, layers), "head_dim": 8}
        deep = {"num_position_embeddings": 2304, "deepstack_visual_indexes": [0, 1]}
        vision = patches(**deep, **tower_sizes)
    else:
        vision = patches(**{**WINDOWS, "window_size": 112}, **tower_sizes)
    language = _text(sizes, "", layers, rope_parameters=rope, **text)
    return processor, model_of(config_of(prefix, language, vision, **qwen_ids(made)))


def _video_llava(sizes: PublishedSizes, layers: int) -> Made:
    processor = processors.video_llava(sizes.edge, sizes.patch, **processors.CLIP_TOKENS)
    return _made(processor, "VideoLlava", _text(sizes, "llama", layers), _clip(sizes), BOTH)


BUILDERS: dict[str, Callable[[PublishedSizes, int], Made]] = {
    "blip": _blip,
    "gemma3": _gemma3,
    "glm4v": _glm4v,
    "idefics3": _idefics3,
    "internvl": _internvl,
    "llava": _llava,
    "llava_next": _llava_next,
    "llava_next_video": _llava_next_video,
    "llava_onevision": _llava_onevision,
    "mistral3": _mistral3,
    "mllama": _mllama,
    "paligemma": _paligemma,
    "qwen2_vl": lambda sizes, layers: _qwen("Qwen2VL", sizes, layers),
    "qwen2_5_vl": lambda sizes, layers: _qwen("Qwen2_5_VL", sizes, layers),
    "qwen3_vl": lambda sizes, layers: _qwen("Qwen3VL", sizes, layers),
    "smolvlm": _smolvlm,
    "video_llava": _video_llava,
}
"""Family → makes its processor and its model, whose language half has so many layers."""
CALLS: dict[str, str] = {
    "llava": "llava_next",
    "llava_onevision": "llava_next_video",
    "mistral3": "pixtral",
    "qwen2_5_vl": "qwen2_vl",
    "qwen3_vl": "qwen2_vl",
    "smolvlm": "qwen2_vl",
}
"""Family → another one of `processors.KINDS` whose processor is called alike."""


@made_once
def published_checkpoint(folder: Path, family: str, layers: int = LAYERS) -> None:
    """Write the family's checkpoint with published sizes."""
    sizes = PUBLISHED[family]
    if family == "cogvlm2":
        _cogvlm2(folder, sizes)
        return
    processor, model = BUILDERS[family](sizes, layers)
    save(folder, decisive(model), processor)


def _cogvlm2(folder: Path, sizes: PublishedSizes) -> None:
    """Write a checkpoint in the published layout, with frames of the published size."""
    cogvlm2.make_folder(folder.joinpath("made"))
    for path in folder.joinpath("made").iterdir():
        path.rename(folder / path.name)
    positions = (sizes.edge // sizes.patch) ** 2 + 1
    seen = {**cogvlm2.SEEN, "image_size": sizes.edge, "num_positions": positions}
    change_config(folder, vision_config=seen, max_position_embeddings=sizes.stated_context)

    def widen(weights: dict[str, torch.Tensor]) -> None:
        name = "model.vision.patch_embedding.position_embedding.weight"
        weights[name] = weights[name].repeat(-(-positions // len(weights[name])), 1)[:positions]

    change_weights(folder, widen)


def change_context(folder: Path, tokens: int) -> Path:
    """Let a checkpoint that may be written to state so many positions, without RoPE scaling."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    text = config.get("text_config", config)
    text["max_position_embeddings"] = tokens
    if text.get("rope_parameters", {}).get("factor"):
        text["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0}
    path.write_text(json.dumps(config))
    return folder
