"""Finds what is to be converted: files of pickled weights, and the small files that make a model of
them. Opens no weights."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts.errors import EnvironmentFault, UsageError
from stages.models.hub.checkpoint import (
    AGAIN,
    SMALL,
    json_bytes,
    not_whole,
    small_files,
    weight_map,
)
from stages.models.hub.faults import PICKLES

PICKLED, PICKLED_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
PARTS = "pytorch_model-*-of-[0-9]*[0-9].bin"
BESIDE = (
    "tokenizer*", "vocab.*", "merges.txt", "*.model", "special_tokens_map.json",
    "*processor_config.json", "chat_template*",
)  # fmt: skip
"""Patterns of files that are taken along with an original file of weights: what else lies beside
it, in a folder of downloads, may be anything."""
TYPES = ("dtype", "torch_dtype")
"""Names in config.json of the type of the weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PickledModel:
    """A model whose weights are pickles, as it lies on disk."""

    folder: Path
    files: tuple[Path, ...]
    """Its files of weights."""
    index: dict[str, str]
    """Tensor → file, where an index says so; else empty."""
    alone: bool
    """Whether a file was given, and not a folder."""

    def small_files(self, original: bool) -> dict[str, bytes]:
        """Return the files of the model that hold no weights, by name. Of an `original` file these
        are those of its tokenizer and processor alone. Raises EnvironmentFault for one that cannot
        be read."""
        found = small_files(self.folder, BESIDE if original else SMALL)
        return {n: content for n, content in found.items() if Path(n).suffix not in PICKLES}


def find_pickled(path: Path) -> PickledModel:
    """Find the weights of a folder, or of one file. Raises UsageError for what holds none,
    EnvironmentFault for what is not all there."""
    if path.is_file():
        if path.suffix not in PICKLES:
            raise UsageError(
                f"{path} is no file of pickled weights ({', '.join(PICKLES)})",
                hint=_already(path.parent) if path.suffix == ".safetensors" else "Check its name",
            )
        return PickledModel(folder=path.parent, files=(path,), index={}, alone=True)
    if not path.is_dir():
        raise UsageError(
            f"there is no folder or file {path}",
            hint="Check its name; what is on a hub has to be downloaded first: "
            "hf download OWNER/NAME --local-dir FOLDER",
        )
    if any(path.glob("*.safetensors")):
        raise UsageError(f"{path} holds safetensors already", hint=_already(path))
    index = weight_map(path / PICKLED_INDEX) if (path / PICKLED_INDEX).exists() else {}
    files = tuple(path / name for name in sorted(set(index.values()))) or _files(path)
    for file in files:
        if not file.is_file():
            raise EnvironmentFault(f"{file} is missing, which {PICKLED_INDEX} names", hint=AGAIN)
    return PickledModel(folder=path, files=files, index=index, alone=False)


def _already(folder: Path) -> str:
    return f"There is nothing to convert: use --model {folder}"


def _files(folder: Path) -> tuple[Path, ...]:
    """Return the files of weights of a folder without an index."""
    if (folder / PICKLED).exists():
        return (folder / PICKLED,)
    parts = sorted(folder.glob(PARTS))
    if parts:
        count = parts[0].stem.rpartition("-")[2]
        if len(parts) != int(count):
            raise EnvironmentFault(
                f"{folder} holds {len(parts)} of the {int(count)} files of its weights", hint=AGAIN
            )
        return tuple(parts)
    found = sorted(path for path in folder.iterdir() if path.suffix in PICKLES)
    if len(found) == 1:
        return (found[0],)
    names = ", ".join(path.name for path in found[:3])
    raise UsageError(
        f"{folder} holds {'several pickles: ' + names if found else 'no pickled weights'}",
        hint="Give the file that holds the model" if found else "Check which folder it is",
    )


def config_as(content: bytes, dtype: str, path: Path) -> bytes:
    """Return a config.json that says `dtype` of the weights wherever it says what type they are.
    `dtype` is empty for weights that keep theirs. Raises EnvironmentFault for one that is none."""
    if not dtype:
        return content
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise not_whole(path, "configuration") from error
    _say(value, dtype)
    return json_bytes(value)


def _say(value: Any, dtype: str) -> None:
    for name, inner in value.items() if isinstance(value, dict) else ():
        if name in TYPES and isinstance(inner, str):
            value[name] = dtype
        _say(inner, dtype)
