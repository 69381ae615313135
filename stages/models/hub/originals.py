"""Refuses checkpoints in the original LLaVA format, by their configuration. Opens no weights.

Such a checkpoint names a vision encoder that is stored elsewhere. It keeps the language model's
sizes where transformers does not look for them. transformers would build a model of default sizes
and initialize the weights that it does not find by name.
"""

import re
from pathlib import Path
from typing import Any

from artifacts.errors import UsageError
from stages.models.hub.checkpoint import class_names, read_config

CLASS = re.compile(r"Llava\w*ForCausalLM")
"""Pattern of that code's class names; those of transformers are different."""
VISION_TOWER_SETTING = "mm_vision_tower"
"""The setting that names the vision encoder."""
OWNER = "llava-hf"
"""Owner of the converted checkpoints on the hub."""
SAME_NAMES = (
    "llava-v1.6-vicuna-7b",
    "llava-v1.6-vicuna-13b",
    "llava-v1.6-mistral-7b",
    "llava-v1.6-34b",
    "llama3-llava-next-8b",
    "llava-next-72b",
    "llava-next-110b",
    "llava-onevision-qwen2-0.5b-si",
    "llava-onevision-qwen2-0.5b-ov",
    "llava-onevision-qwen2-7b-si",
    "llava-onevision-qwen2-7b-ov",
    "llava-onevision-qwen2-72b-si",
    "llava-onevision-qwen2-72b-ov",
)
CONVERTED = {
    "llava-v1.5-7b": f"{OWNER}/llava-1.5-7b-hf",
    "llava-v1.5-13b": f"{OWNER}/llava-1.5-13b-hf",
    **{name: f"{OWNER}/{name}-hf" for name in SAME_NAMES},
}
"""Original checkpoint, without its owner → hub id of the same weights for transformers."""

NEAREST = {
    "llava-video-7b-qwen2": f"{OWNER}/llava-onevision-qwen2-7b-ov-hf",
    "llava-video-7b-qwen2-video-only": f"{OWNER}/llava-onevision-qwen2-7b-ov-hf",
    "llava-video-72b-qwen2": f"{OWNER}/llava-onevision-qwen2-72b-ov-hf",
}
"""Original checkpoint that nobody converted → hub id of a video model from the same
authors and of the same size."""


def is_original(folder: Path) -> bool:
    """Return whether the configuration in a folder belongs to the original code."""
    return bool(_class_of(read_config(folder)))


def refuse_original(name: str, folder: Path) -> None:
    """Refuse a checkpoint called `name` whose configuration, in `folder`, belongs to the original
    code. A checkpoint with its own code may still run by that. Raises UsageError."""
    config = read_config(folder)
    found = _class_of(config)
    if not found or config.get("auto_map"):
        return
    short = Path(name).name.lower()
    same, near = CONVERTED.get(short), NEAREST.get(short)
    if near:
        hint = f"It was never converted: use {near}, by the same authors, which also sees videos"
    elif same:
        hint = f"Use {same}, the same model in transformers' format"
    else:
        hint = (
            "Look for one whose id ends in -hf, or convert it with one of transformers' scripts "
            "convert_llava*_weights_to_hf.py"
        )
    raise UsageError(
        f"{name} is in the form of the original LLaVA code ({found}), for which transformers would "
        "initialize the vision encoder at random",
        hint=hint,
    )


def _class_of(config: dict[str, Any]) -> str:
    """Return the class of the original code that a configuration names; empty for others."""
    classes = class_names(config)
    if found := next(filter(CLASS.fullmatch, classes), ""):
        return found
    foreign = VISION_TOWER_SETTING in config and not isinstance(config.get("vision_config"), dict)
    return next(iter(classes), VISION_TOWER_SETTING) if foreign else ""
