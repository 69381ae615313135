"""Models with contexts of other lengths. To the demo's captioner with room for long prompts, 100
times the letter é is one word."""

import json
import shutil
from pathlib import Path

from penstock_demo import CHECKPOINT

LETTER = "é"
CONTEXT = 1 << 17


def with_context(model: Path | str, tokens: int, folder: Path) -> Path:
    """Copy a checkpoint into a folder that is not there yet, with so many positions."""
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = tokens
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def long_context_model(folder: Path) -> Path:
    """Write the demo's checkpoint into a folder that is not there yet; returns the folder."""
    with_context(CHECKPOINT, CONTEXT, folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    pattern = {"Regex": f"{LETTER}{{100}}"}
    tokenizer["normalizer"] = {"type": "Replace", "pattern": pattern, "content": " a"}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder
