"""The demo model with MLPs so wide that a batch is what takes memory, or with so many layers of
keys that what it remembers is; its words mean nothing."""

import json
import shutil
from pathlib import Path
from typing import Any

from penstock_demo import CHECKPOINT

SAYS = 4
"""Tokens that are worth asking it for."""


def write_wide_model(folder: Path, *, text: int, vision: int) -> Path:
    """A checkpoint whose halves' MLPs are so wide inside."""
    return _write(folder, {"intermediate_size": text}, {"intermediate_size": vision})


def write_remembering_model(folder: Path) -> Path:
    """A checkpoint that remembers 1,536 bytes of a token in each of 16 layers, in 16 bit."""
    keys = {"hidden_size": WIDTH, "num_attention_heads": HEADS, "num_key_value_heads": HEADS}
    kinds = {"num_hidden_layers": 16, "layer_types": ["full_attention"] * 16}
    return _write(folder, {**keys, **kinds}, {"out_hidden_size": WIDTH})


WIDTH, HEADS = 384, 12


def _write(folder: Path, text: dict[str, Any], vision: dict[str, Any]) -> Path:
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    shutil.copytree(CHECKPOINT, folder)
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    values["dtype"] = "float32"
    values["text_config"].update(text)
    values["vision_config"].update(vision)
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
    (folder / "model.safetensors").unlink()
    torch.manual_seed(5)
    config = AutoConfig.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    return folder
