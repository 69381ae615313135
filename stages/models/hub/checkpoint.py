"""Lists the files of a checkpoint on this machine and on the hub, and refuses the original LLaVA
format.

The module downloads nothing and opens no weights. It recognizes a checkpoint in the original LLaVA
format by its configuration. Such a checkpoint names a vision encoder that is stored elsewhere. It
keeps the language model's sizes where transformers does not look for them. transformers would build
a model of default sizes and initialize the weights that it does not find by name.
"""

import fnmatch
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from artifacts.disk.json_shapes import Json
from artifacts.disk.regular_files import open_regular, read_text
from artifacts.errors import EnvironmentFault, UsageError
from artifacts.records.model_files import ALONG
from artifacts.records.model_files import SMALL as SMALL

DOWNLOAD_HINT = "Download it again (with git: git lfs pull)"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
CONFIG = "config.json"
GENERATION = "generation_config.json"
TEMPLATES = "additional_chat_templates"
"""Folder of the templates beside the main one."""
JSON_BYTES = 32 << 20
"""Maximum bytes of a configuration or an index; the index of a thousand files fits."""
MOST_LAYERS = 10_000
"""Most layers or experts of a checkpoint; published ones have up to some thousands."""
LAYERS, EXPERTS = re.compile(r"(?<!window_)layers?$|depths?$"), re.compile("experts$")
"""Patterns of settings that state how many there are. A window over layers may be beyond them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightFile:
    """A weight file as the hub lists it."""

    name: str
    size: int
    """Size in bytes."""
    digest: str
    """SHA-256 of its content; empty for a small file that the hub keeps in git. Such files are
    downloaded with the configuration."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """The files of a model: a local folder, and the weight files that the hub lists. The folder
    holds at least all small files; the weights may be missing."""

    name: str
    """Folder or hub id, as the user gave it."""
    folder: Path
    commit: str | None = None
    """The hub's commit that the folder holds; None for a user's folder."""
    weights: tuple[WeightFile, ...] = ()
    """All weight files of a hub id; empty if the folder itself is complete."""

    def missing(self, names: Iterable[str] | None = None) -> list[WeightFile]:
        """Return the weight files that are not in the folder, out of `names` or of all."""
        requested = None if names is None else set(names)
        return [
            file
            for file in self.weights
            if (requested is None or file.name in requested)
            and not (self.folder / file.name).exists()
        ]

    def digest(self, name: str) -> str:
        """Return the SHA-256 that the hub states for a weight file; empty if it states none."""
        return next((file.digest for file in self.weights if file.name == name), "")


def weight_names(folder: Path) -> list[str]:
    """Return the names of the weight files: one file of the default name, which goes before an
    index as in transformers, or those of the index. Raises EnvironmentFault for an invalid index.
    """
    index = folder / INDEX
    if (folder / SINGLE).exists() or not index.exists():
        return [SINGLE]
    return sorted(set(weight_map(index).values()))


def weight_map(index: Path) -> dict[str, str]:
    """Return tensor → file from a weight index. Raises EnvironmentFault for an invalid index."""
    try:
        files: dict[str, str] = dict(json.loads(read_text(index, JSON_BYTES))["weight_map"])
        if not all(_is_inside(name) for name in files.values()):
            raise ValueError("a name leads out of the folder")
        return files
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise incomplete_file(index, "index of weights") from error


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\0" not in name


def small_files(folder: Path, patterns: Iterable[str] = (*SMALL, *ALONG)) -> dict[str, bytes]:
    """Return the files of a model without weights whose names match the patterns, those in
    TEMPLATES, too. Raises EnvironmentFault for one that cannot be read."""
    files = {}
    for path in sorted([*folder.iterdir(), *(folder / TEMPLATES).glob("*.jinja")]):
        name = path.relative_to(folder).as_posix()
        taken = any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
        if not taken or name.endswith(".index.json") or not path.is_file():
            continue
        try:
            with open_regular(path) as file:
                files[name] = file.read()
        except OSError as error:
            raise EnvironmentFault(
                f"{path} cannot be read ({error.strerror})", hint="Check the file"
            ) from error
    return files


def read_config(folder: Path, name: str = CONFIG) -> dict[str, Any]:
    """Return config.json, or another JSON file; empty if it cannot be read, which its reader
    reports."""
    try:
        config = json.loads(read_text(folder / name, JSON_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def refuse_impossible(folder: Path, tensors: int | None = None) -> None:
    """Refuse a config.json with a value that no checkpoint has, or more layers than the `tensors`
    of its weights, because a library would build all of them. Raises UsageError."""
    most = MOST_LAYERS if tensors is None else min(tensors, MOST_LAYERS)
    values_left: list[tuple[str, Any]] = [("", read_config(folder))]
    while values_left:
        name, value = values_left.pop()
        limit = most if LAYERS.search(name) else MOST_LAYERS if EXPERTS.search(name) else None
        why = ""
        if name == "model_type" and not isinstance(value, str | None):
            why = "which is no text"
        elif limit is not None and isinstance(value, int | float) and value > limit:
            most_of = "no checkpoint" if tensors is None else "no checkpoint of its size"
            why = f"and {most_of} has more than {limit:,}"
        if why:
            raise UsageError(
                f"{folder}/{CONFIG} cannot be used: {name} is {str(value)[:40]}, {why}",
                hint="Download the checkpoint again, or choose another",
            )
        values_left += value.items() if isinstance(value, dict) else ()
        values_left += [(name, child) for child in value] if isinstance(value, list) else ()


def class_names(config: Mapping[str, Json]) -> list[str]:
    """Return the classes that a config.json names."""
    named = config.get("architectures")
    return [name for name in named if isinstance(name, str)] if isinstance(named, list) else []


def json_bytes(value: Any) -> bytes:
    """Return JSON in the format of model files."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def incomplete_file(path: Path, kind: str = "safetensors file") -> EnvironmentFault:
    return EnvironmentFault(f"{path} is not a whole {kind}", hint=DOWNLOAD_HINT)


def is_complete(folder: Path) -> bool:
    """Return whether a folder holds its configuration and all weight files of its index."""
    return (folder / "config.json").exists() and all(
        (folder / name).exists() for name in weight_names(folder)
    )


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
    class_name = _class_of(config)
    if not class_name or config.get("auto_map"):
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
        f"{name} is in the form of the original LLaVA code ({class_name}), for which transformers "
        "would initialize the vision encoder at random",
        hint=hint,
    )


def _class_of(config: dict[str, Json]) -> str:
    """Return the class of the original code that a configuration names; empty for others."""
    classes = class_names(config)
    if class_name := next(filter(CLASS.fullmatch, classes), ""):
        return class_name
    foreign = VISION_TOWER_SETTING in config and not isinstance(config.get("vision_config"), dict)
    return next(iter(classes), VISION_TOWER_SETTING) if foreign else ""
