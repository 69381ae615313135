"""The demo model with MLPs so wide that a batch is what takes memory; its words mean nothing."""

import json
import shutil
from pathlib import Path

from penstock_demo import CHECKPOINT

SAYS = 4
"""Tokens that are worth asking it for."""


def write_wide_model(folder: Path, *, text: int, vision: int, dtype: str = "float32") -> Path:
    """A checkpoint whose halves' MLPs are so wide inside."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    shutil.copytree(CHECKPOINT, folder)
    told = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    told["dtype"] = dtype
    told["text_config"]["intermediate_size"] = text
    told["vision_config"]["intermediate_size"] = vision
    (folder / "config.json").write_text(json.dumps(told), encoding="utf-8")
    (folder / "model.safetensors").unlink()
    torch.manual_seed(5)
    config = AutoConfig.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_config(config, dtype=getattr(torch, dtype))
    model.save_pretrained(folder)
    return folder
