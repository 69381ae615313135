"""A small LLaVA in several files of weights, large enough that their headers are little beside
them, as a hub would hold it."""

import atexit
import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any

import transformers

from tests.support.families import checkpoint
from tests.support.hub import Repository

hf: Any = transformers
SHARD = "7MB"


@functools.cache
def sharded() -> Path:
    """The checkpoint's folder, made once a session; not to be written to."""
    root = tempfile.TemporaryDirectory()
    atexit.register(root.cleanup)
    folder = Path(root.name) / "sharded"
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
    return folder


def repository(folder: Path, **more: Any) -> Repository:
    """What a hub holds after the folder was uploaded."""
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    return Repository(files={**files, "README.md": b"# A model\n"}, **more)
