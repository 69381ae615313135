"""Writes checkpoints of public models from their configurations, without weights: headers in files
of full length whose data is a hole, and processors that cut pictures as the published ones do."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from tests.support.builders import processors as plan_processors
from tests.support.builders.plan_cases import TYPES, Shape, write_header
from tests.support.builders.words import (
    LLAVA_TEMPLATE,
    QWEN_TEMPLATE,
    SMOL_TEMPLATE,
    template,
    words,
)

hf: Any = transformers
FACTS = Path(__file__).with_suffix(".json")


@dataclass(frozen=True, kw_only=True, slots=True)
class CardModel:
    """A public model, as far as its memory depends on it."""

    name: str
    """Its id on the hub."""
    class_name: str
    parameters: int
    """Count of its parameters, as published."""
    dtype: str
    """Of its files."""
    transformers_version: str
    """The version that wrote its files."""
    processor: str
    """Which of the processors below it has."""
    source: str
    """Where these facts are published."""
    config: dict[str, Any]
    """Values of its configuration that differ from the defaults of transformers."""


def card_models() -> list[CardModel]:
    """Return the models of the page."""
    found = json.loads(FACTS.read_text(encoding="utf-8"))
    return [CardModel(class_name=model.pop("class"), **model) for model in found]


def write_checkpoint(model: CardModel, folder: Path) -> Path:
    """Write what a plan reads of a model. Raises ValueError if its class has another count of
    parameters than is published."""
    folder.mkdir(parents=True)
    processor, ids = PROCESSORS[model.processor](model.config)
    processor.save_pretrained(folder)
    cls = getattr(hf, model.class_name)
    config = cls.config_class(**model.config, **ids)
    with torch.device("meta"):
        made = cls(config)
    made.tie_weights()
    weights = dict(made.named_parameters())
    count = sum(weight.numel() for weight in weights.values())
    if count != model.parameters:
        raise ValueError(f"{model.name} has {count:,} parameters, and {model.parameters:,} is said")
    messages = {
        **config.to_dict(),
        "architectures": [model.class_name],
        "dtype": model.dtype,
        "transformers_version": model.transformers_version,
    }
    (folder / "config.json").write_text(json.dumps(messages))
    dtype = TYPES[model.dtype]
    shapes = {name: Shape(dtype=dtype, shape=tuple(w.shape)) for name, w in weights.items()}
    write_header(folder / "model.safetensors", shapes)
    return folder


def _qwen_words() -> tuple[Any, dict[str, int]]:
    names = ("image_token", "video_token", "vision_start_token", "vision_end_token")
    marks = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    made = words("<|im_start|>", "<|im_end|>", *marks)
    made.chat_template = QWEN_TEMPLATE
    ids = made.convert_tokens_to_ids(list(marks))
    return made, {f"{name}_id": number for name, number in zip(names, ids, strict=True)}


def qwen2_5_vl(config: dict[str, Any]) -> tuple[Any, dict[str, int]]:
    made, ids = _qwen_words()
    return plan_processors.qwen2_5_vl(made), ids


def qwen3_vl(config: dict[str, Any]) -> tuple[Any, dict[str, int]]:
    made, ids = _qwen_words()
    common = {"patch_size": 16, "temporal_patch_size": 2, "merge_size": 2}
    processor = hf.Qwen3VLProcessor(
        image_processor=hf.Qwen2VLImageProcessor(
            size={"shortest_edge": 65536, "longest_edge": 16777216}, **common
        ),
        tokenizer=made,
        video_processor=hf.Qwen3VLVideoProcessor(
            size={"shortest_edge": 4096, "longest_edge": 25165824},
            fps=2,
            min_frames=4,
            max_frames=768,
            cap_pixels_per_frame=False,
            **common,
        ),
        chat_template=QWEN_TEMPLATE,
    )
    return processor, ids


def internvl(config: dict[str, Any]) -> tuple[Any, dict[str, int]]:
    square = {"height": 448, "width": 448}
    made = words(
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    processor = hf.InternVLProcessor(
        hf.GotOcr2ImageProcessor(size=square, crop_to_patches=True, min_patches=1, max_patches=12),
        made,
        hf.InternVLVideoProcessor(size=square),
        image_seq_length=256,
        chat_template=template("<IMG_CONTEXT>", "<video>"),
    )
    return processor, {"image_token_id": made.convert_tokens_to_ids("<IMG_CONTEXT>")}


def smolvlm(config: dict[str, Any]) -> tuple[Any, dict[str, int]]:
    edge, scale = config["vision_config"]["image_size"], config["scale_factor"]
    marks = ("<|im_start|>", "<end_of_utterance>", "<fake_token_around_image>", "<global-img>")
    tiles = tuple(f"<row_{row}_col_{col}>" for row in range(1, 5) for col in range(1, 5))
    made = words(*marks, *tiles, image="<image>", video="<video>")
    made.chat_template = SMOL_TEMPLATE
    sizes = {"size": {"longest_edge": 4 * edge}, "max_image_size": {"longest_edge": edge}}
    sampling = {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": edge}}
    processor = hf.SmolVLMProcessor(
        image_processor=hf.SmolVLMImageProcessor(**sizes),
        tokenizer=made,
        video_processor=hf.SmolVLMVideoProcessor(**sizes, video_sampling=sampling),
        image_seq_len=(edge // config["vision_config"]["patch_size"] // scale) ** 2,
        chat_template=SMOL_TEMPLATE,
    )
    return processor, {"image_token_id": made.convert_tokens_to_ids("<image>")}


def llava_onevision(config: dict[str, Any]) -> tuple[Any, dict[str, int]]:
    made = words(image="<image>", video="<video>")
    processor = hf.LlavaOnevisionProcessor(
        image_processor=hf.LlavaOnevisionImageProcessor(),
        tokenizer=made,
        video_processor=hf.LlavaOnevisionVideoProcessor(),
        num_image_tokens=729,
        vision_feature_select_strategy="full",
        chat_template=LLAVA_TEMPLATE,
    )
    ids = made.convert_tokens_to_ids(["<image>", "<video>"])
    return processor, dict(zip(("image_token_index", "video_token_index"), ids, strict=True))


def llava(config: dict[str, Any]) -> tuple[Any, dict[str, int]]:
    vision, made = config["vision_config"], words(image="<image>")
    processor = plan_processors.llava(made, vision["image_size"], vision["patch_size"])
    return processor, {"image_token_index": made.convert_tokens_to_ids("<image>")}


def gemma3(config: dict[str, Any]) -> tuple[Any, dict[str, int]]:
    edge = config["vision_config"]["image_size"]
    made = words(boi_token="<boi>", eoi_token="<eoi>", image_token="<soft>")
    processor = hf.Gemma3Processor(
        hf.Gemma3ImageProcessor(size={"height": edge, "width": edge}),
        made,
        chat_template=template("<boi>"),
        image_seq_length=256,
    )
    names = ("boi_token_index", "eoi_token_index", "image_token_id")
    ids = made.convert_tokens_to_ids(["<boi>", "<eoi>", "<soft>"])
    return processor, dict(zip(names, ids, strict=True))


def clip(config: dict[str, Any]) -> tuple[Any, dict[str, int]]:
    made = words()
    made.padding_side = "right"
    part = hf.CLIPImageProcessor()
    return hf.CLIPProcessor(image_processor=part, tokenizer=made), {}


def siglip(config: dict[str, Any]) -> tuple[Any, dict[str, int]]:
    edge = config["vision_config"]["image_size"]
    part = hf.SiglipImageProcessor(size={"height": edge, "width": edge})
    return hf.SiglipProcessor(image_processor=part, tokenizer=words()), {}


PROCESSORS: dict[str, Callable[[dict[str, Any]], tuple[Any, dict[str, int]]]] = {
    made.__name__: made
    for made in (
        qwen2_5_vl,
        qwen3_vl,
        internvl,
        smolvlm,
        llava_onevision,
        llava,
        gemma3,
        clip,
        siglip,
    )
}
"""Name of a processor → makes it for a configuration, with the ids of its tokens."""
