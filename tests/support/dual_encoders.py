"""Tiny dual encoders with random weights, one of every class that transformers has for zero-shot
labels, and their inputs; and whether the halves of a saved one, vectors going through the form that
they have in the store, equal the whole to the last bit. Needs no network."""

import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from artifacts.errors import PenstockError
from artifacts.records.packs import Record
from artifacts.records.vectors import vector_record, vectors_in
from stages.models.halves.boundary import absent_paths
from stages.models.halves.features import image_vectors, logits, text_vectors
from stages.models.halves.load import load_half
from stages.models.halves.model_class import config_and_class, one_line
from stages.models.halves.split_route import choose_route
from tests.support.builders.clip import PATCH, SIDE, TEXT, VISION
from tests.support.builders.words import hf, tokenizer

CONVOLVING = {
    "image_size": SIDE,
    "width_coefficient": 1.0,
    "depth_coefficient": 1.0,
    "depth_divisor": 8,
    "kernel_sizes": [3, 3],
    "in_channels": [32, 16],
    "out_channels": [16, 32],
    "strides": [1, 2],
    "num_block_repeats": [1, 1],
    "expand_ratios": [1, 2],
    "depthwise_padding": [],
    "hidden_dim": 32,
}


def names() -> dict[str, str]:
    """Type of a model → its class, of all that transformers labels pictures with."""
    from transformers.models.auto import modeling_auto as auto

    return dict(auto.MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES)


def config_of(name: str) -> Any:
    cls = getattr(hf, names()[name]).config_class
    two = {"text_config": TEXT, "vision_config": VISION, "projection_dim": 24}
    if name == "align":
        two = {**two, "vision_config": CONVOLVING, "projection_dim": 32}
    elif name == "blip":
        two |= {"text_config": {**TEXT, "encoder_hidden_size": 32}, "image_text_hidden_size": 24}
    elif name == "altclip":
        two["text_config"] = {**TEXT, "project_dim": 24}
    elif name == "clipseg":
        two |= {"extract_layers": [0, 1], "reduce_dim": 16}
    elif name in ("siglip", "siglip2"):
        two["text_config"] = {**TEXT, "projection_size": 32}
        two.pop("projection_dim")
    elif name == "tipsv2":
        two.pop("projection_dim")
    if name == "siglip2":
        two["vision_config"] = {**VISION, "num_patches": (SIDE // PATCH) ** 2}
    return cls(**two)


def tiny(name: str) -> Any:
    """A model of that class; weights that begin at nothing are drawn too."""
    torch.manual_seed(0)
    model = getattr(hf, names()[name])(config_of(name)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 0 or not weight.abs().sum():
                torch.nn.init.normal_(weight, std=0.5)
    return model


def pictures(name: str, count: int = 3) -> dict[str, Any]:
    """Pictures as the class takes them."""
    if name != "siglip2":
        return {"pixel_values": torch.randn(count, 3, SIDE, SIDE)}
    side = SIDE // PATCH
    return {
        "pixel_values": torch.randn(count, side * side, 3 * PATCH * PATCH),
        "pixel_attention_mask": torch.ones(count, side * side, dtype=torch.long),
        "spatial_shapes": torch.tensor([[side, side]] * count),
    }


def texts(count: int = 2) -> dict[str, Any]:
    ids = torch.randint(3, 90, (count, 8))
    ids[:, 0], ids[:, -1] = 1, 2
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def save(name: str, folder: Path) -> Path:
    """A tiny checkpoint of a class with its processor, as a hub has them."""
    square = {"height": SIDE, "width": SIDE}
    kinds: dict[str, tuple[Any, Any]] = {
        "align": (hf.AlignProcessor, hf.EfficientNetImageProcessor(size=square)),
        "altclip": (
            hf.AltCLIPProcessor,
            hf.CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=square),
        ),
        "blip": (hf.BlipProcessor, hf.BlipImageProcessor(size=square)),
        "chinese_clip": (
            hf.ChineseCLIPProcessor,
            hf.ChineseCLIPImageProcessor(size=square, crop_size=square),
        ),
        "clipseg": (hf.CLIPSegProcessor, hf.ViTImageProcessor(size=square)),
        "siglip": (hf.SiglipProcessor, hf.SiglipImageProcessor(size=square)),
        "siglip2": (hf.Siglip2Processor, hf.Siglip2ImageProcessor()),
    }
    cls, part = kinds[name]
    torch.manual_seed(0)
    config, words = config_of(name), tokenizer(("<unk>",) if name == "siglip2" else (), "")
    config.text_config.vocab_size = len(words)
    if name == "siglip2":  # of as many pictures' pieces as its processor makes by itself
        config.vision_config.patch_size, config.vision_config.num_patches = 16, 256
    getattr(hf, names()[name])(config).eval().save_pretrained(folder)
    cls(image_processor=part, tokenizer=words).save_pretrained(folder)
    return folder


OF = ("pictures", "texts", "logits")


@dataclass(frozen=True, kw_only=True, slots=True)
class DualVerdict:
    """What came of one class in one precision."""

    name: str
    class_name: str
    results: dict[str, str]
    """Pictures, texts and logits → `exact`, `differs`, or `fails: …` where the whole model does;
    empty when it is refused."""
    width: int = 0
    """Numbers of a vector."""
    shares: tuple[float, float] = (0.0, 0.0)
    """Numbers of the vision half and of the text half, of all."""
    refused: str = ""
    """Why it is refused."""

    @property
    def exact(self) -> bool:
        return bool(self.results) and set(self.results.values()) == {"exact"}


def judge(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> DualVerdict:
    """Build the class, save it to `folder`, and compare."""
    class_name = names()[name]
    if (refused := refusal(class_name)) is not None:
        return DualVerdict(name=name, class_name=class_name, results={}, refused=refused)
    model = tiny(name)
    model.save_pretrained(folder)
    torch.manual_seed(1)
    images, words = pictures(name), texts()
    whole = type(model).from_pretrained(folder, dtype=dtype).eval()
    halves = [load_half(folder, half, dtype=dtype) for half in ("vision", "language")]
    assert config_and_class(folder, trusted=False)[1] is type(model)
    made = image_vectors(halves[0], images)
    kept = through_store(made)
    taken = inspect.signature(type(model).get_text_features).parameters
    requests = {n: v for n, v in words.items() if n in taken}
    shown = {n: v.to(dtype) if v.is_floating_point() else v for n, v in images.items()}
    pairs: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "pictures": (lambda: kept, lambda: whole.get_image_features(**shown)),
        "texts": (
            lambda: text_vectors(halves[1], words),
            lambda: whole.get_text_features(**requests),
        ),
        "logits": (
            lambda: logits(halves[1], words, kept),
            lambda: whole(**shown, **requests).logits_per_image,
        ),
    }
    numbers = [sum(weight.numel() for weight in half.parameters()) for half in (*halves, whole)]
    return DualVerdict(
        name=name,
        class_name=class_name,
        results={of: _compared(*pair) for of, pair in pairs.items()},
        width=made.shape[1],
        shares=(numbers[0] / numbers[2], numbers[1] / numbers[2]),
    )


def through_store(vectors: torch.Tensor) -> torch.Tensor:
    """The vectors as they come from a record of them, in what they were computed in."""
    record = vector_record("key", vectors.float().numpy())
    meta = json.loads(json.dumps(record.meta))
    again = vectors_in(Record(key="key", meta=meta, payload=record.payload))
    return torch.from_numpy(again.copy()).to(vectors.dtype)


def refusal(class_name: str) -> str | None:
    cls = getattr(hf, class_name)
    with torch.device("meta"):
        skeleton = cls(cls.config_class())
    try:
        choose_route(skeleton)
    except PenstockError as error:
        return error.message
    return None


def _compared(found: Callable[[], Any], expected: Callable[[], Any]) -> str:
    with torch.inference_mode():
        try:
            whole = expected()
        except (TypeError, ValueError, RuntimeError) as error:
            return f"fails: {one_line(error)}"
        pooled = whole if isinstance(whole, torch.Tensor) else whole.pooler_output
        return "exact" if torch.equal(found(), pooled) else "differs"


def reached_by_running(name: str) -> set[str]:
    """The model's own parts that compute when a vector of a picture is made."""
    model, seen = tiny(name), set[str]()
    for part, module in model.named_children():
        for inner in module.modules():
            inner.register_forward_pre_hook(lambda *_, part=part: seen.add(part))
    with torch.inference_mode():
        model.get_image_features(**pictures(name))
    return seen


def kept_by_vision(name: str) -> set[str]:
    """The same as the cut has it."""
    model = tiny(name)
    return {part for part, _ in model.named_children()} - set(absent_paths(model, "vision"))
