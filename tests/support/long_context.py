"""The demo's captioner with room for long prompts: 100 times the letter é is one word to it."""

import json
import shutil
from pathlib import Path

from penstock_demo import CHECKPOINT

LETTER = "é"
CONTEXT = 1 << 17


def long_context_model(folder: Path) -> Path:
    """Write the checkpoint into a folder that is not there yet; returns the folder."""
    shutil.copytree(CHECKPOINT, folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = CONTEXT
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    pattern = {"Regex": f"{LETTER}{{100}}"}
    tokenizer["normalizer"] = {"type": "Replace", "pattern": pattern, "content": " a"}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder
