"""A small LLaVA in several files of weights, large enough that their headers are little beside
them, as a hub would hold it."""

import shutil
from pathlib import Path
from typing import Any

from tests.support.builders.words import hf
from tests.support.families import checkpoint, made_once
from tests.support.hub import Repository

SHARD = "7MB"


@made_once
def sharded(folder: Path) -> None:
    """The checkpoint's folder."""
    whole = checkpoint("llava")
    config = hf.AutoConfig.from_pretrained(whole)
    wide = {"hidden_size": 256, "intermediate_size": 1024}
    config.vision_config.update({**wide, "num_hidden_layers": 6})
    config.text_config.update({**wide, "num_hidden_layers": 3, "head_dim": 64})
    model = hf.LlavaForConditionalGeneration(config)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 1, 0
    model.save_pretrained(folder, max_shard_size=SHARD)
    for path in whole.iterdir():
        if not (folder / path.name).exists() and path.suffix != ".safetensors":
            shutil.copy(path, folder)


def repository(folder: Path, **more: Any) -> Repository:
    """What a hub holds after the folder was uploaded."""
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    return Repository(files={**files, "README.md": b"# A model\n"}, **more)
