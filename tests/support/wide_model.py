"""The demo model with so many layers of keys that what it remembers is what takes memory; its words
mean nothing."""

import json
import shutil
from pathlib import Path

from penstock_demo import CHECKPOINT

WIDTH, HEADS = 384, 12


def write_remembering_model(folder: Path) -> Path:
    """A checkpoint that remembers 1,536 bytes of a token in each of 16 layers, in 16 bit."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    keys = {"hidden_size": WIDTH, "num_attention_heads": HEADS, "num_key_value_heads": HEADS}
    kinds = {"num_hidden_layers": 16, "layer_types": ["full_attention"] * 16}

    shutil.copytree(CHECKPOINT, folder)
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    values["dtype"] = "float32"
    values["text_config"].update({**keys, **kinds})
    values["vision_config"].update(out_hidden_size=WIDTH)
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
    (folder / "model.safetensors").unlink()
    torch.manual_seed(5)
    config = AutoConfig.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    return folder
