"""Models whose weights are pickles, and conversions of them in this process."""

import json
import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from stages.convert.run import run
from tests.support.waves import told_by

Weights = Mapping[str, torch.Tensor]
CONFIG = {"model_type": "clip", "torch_dtype": "float32", "text_config": {"dtype": "float32"}}


class Sentinel:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def drawn(count: int = 6, rows: int = 64, columns: int = 32) -> dict[str, torch.Tensor]:
    """Matrices of as many numbers each."""
    draw = torch.Generator().manual_seed(0)
    return {f"layer.{n}.weight": torch.randn(rows, columns, generator=draw) for n in range(count)}


def write_folder(folder: Path, *parts: Weights) -> Path:
    """A folder with a file of weights for each part, and an index if they are several."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    (folder / "training_args.bin").write_bytes(b"never opened")
    names = ["pytorch_model.bin"]
    if len(parts) > 1:
        names = [f"pytorch_model-{n:05d}-of-{len(parts):05d}.bin" for n in range(1, len(parts) + 1)]
        where = {key: name for name, part in zip(names, parts, strict=True) for key in part}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
    for name, part in zip(names, parts, strict=True):
        torch.save(dict(part), folder / name)
    return folder


def converted(source: Path, folder: Path, dtype: str = "", shard_bytes: int = 1 << 30) -> list[Any]:
    """The events of a conversion. Raises PenstockError."""
    job = {"source": str(source), "folder": str(folder), "dtype": dtype, "shard_bytes": shard_bytes}
    return told_by(run, job)


def written(messages: list[Any]) -> list[str]:
    """The files of weights that were written."""
    return [key for event in messages if event["event"] == "Answered" for key in event["keys"]]


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for path in folder.glob("*.safetensors") for k, v in load_file(path).items()}


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def compressed(source: Path) -> None:
    """The same archive, its members compressed."""
    path = source / "pytorch_model.bin"
    with zipfile.ZipFile(path) as before:
        members = [(entry.filename, before.read(entry)) for entry in before.infolist()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as after:
        for name, content in members:
            after.writestr(name, content)


def as_parts(source: Path) -> None:
    """One of two files of weights."""
    (source / "pytorch_model.bin").rename(source / "pytorch_model-00001-of-00002.bin")


def torn(source: Path) -> None:
    """The file cut off, as by a broken download."""
    with (source / "pytorch_model.bin").open("r+b") as file:
        file.truncate(2000)


def scripted(source: Path) -> None:
    """An archive that says it is TorchScript."""
    with zipfile.ZipFile(source / "pytorch_model.bin", "a") as archive:
        archive.writestr("pytorch_model/constants.pkl", pickle.dumps(()))


def write_along(folder: Path) -> dict[str, str]:
    """Write what no loader reads beside a model. Return name → text."""
    names = ("LICENSE", "README.md", "Notice.txt", "additional_chat_templates/rag.jinja")
    (folder / "additional_chat_templates").mkdir()
    for name in names:
        (folder / name).write_text(f"the text of {name}")
    return {name: f"the text of {name}" for name in names}
