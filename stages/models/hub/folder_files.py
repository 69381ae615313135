"""Judges the files of a checkpoint's folder before a library reads them.

A library says of a damaged file what its parser says, and of a missing one what it would need it
for. So this module reads the beginning of each file that loading reads, and parses those in JSON.
Each fault names the file. Weights are judged by their headers (`headers.py`).
"""

import fnmatch
import json
from functools import cache
from pathlib import Path

import msgspec

from artifacts.disk.regular_files import open_regular
from artifacts.errors import EnvironmentFault, UsageError
from stages.models.hub.checkpoint import read_config

OBJECTS = (
    *("config.json", "generation_config.json", "*processor_config.json", "chat_template*.json"),
    *("tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab*.json"),
)
"""Patterns of the files that loading reads as a JSON object."""
OTHERS = ("vocab*.txt", "merges.txt", "*.model", "*.tiktoken", "*.jinja")
"""Patterns of the other files that loading reads, and that are never empty. (transformers saves an
empty chat template for models that vectors alone are made with.)"""
POINTER = b"version https://git-lfs.github.com/spec/"
"""How a file begins that git keeps in place of a large one."""
TOKENIZERS = ("tokenizer.json", "vocab*", "*.model", "*.tiktoken", "*.spm", "merges.txt")
"""Patterns of the files that hold a tokenizer."""
MOST_BYTES = 1 << 29
"""Size of no JSON file of a checkpoint; the largest tokenizers have 40 MB."""
PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"
"""Files that state how images are prepared; the second one has it since transformers 5."""


def refuse_damaged(folder: Path) -> None:
    """Refuse a folder in which a file that loading reads is empty, a Git LFS pointer, or no JSON
    object. Raises EnvironmentFault."""
    for path in sorted(folder.iterdir()):
        is_object = _fits(path, OBJECTS)
        if not (is_object or _fits(path, OTHERS)):
            continue
        fault = "a folder" if path.is_dir() else "" if path.exists() else "a link to nothing"
        stat = path.lstat() if fault else path.stat()
        if fault := fault or _fault(path, is_object, stat.st_size, stat.st_mtime_ns):
            again = "Download the checkpoint again, or correct that file"
            if fault.endswith("pointer"):
                again = f"Run `git lfs pull` in {folder}, or download the checkpoint again"
            raise EnvironmentFault(f"{path} cannot be used: it is {fault}", hint=again)


def refuse_missing(folder: Path) -> None:
    """Refuse a folder without a tokenizer, or without settings of images. Raises UsageError."""
    names = [path.name for path in folder.iterdir()]
    if not any(fnmatch.fnmatch(name, pattern) for name in names for pattern in TOKENIZERS):
        raise UsageError(
            f"{folder} holds no tokenizer, such as tokenizer.json or tokenizer.model",
            hint="Download the checkpoint again, with all of its small files",
        )
    parts = [name for name, value in read_config(folder, PROCESSOR).items() if value]
    if PREPROCESSOR not in names and not any(name.endswith("_processor") for name in parts):
        raise UsageError(
            f"{folder} holds no {PREPROCESSOR}, which states how images are prepared",
            hint="Download the checkpoint again, with all of its *.json files",
        )


def _fits(path: Path, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatch(path.name, pattern) for pattern in patterns)


@cache
def _fault(path: Path, is_object: bool, size: int, mtime_ns: int) -> str:
    """Return what is wrong with a file, after "it is"; empty for a file that may be read, and for
    one that cannot be opened, which its reader reports."""
    if is_object and size > MOST_BYTES:
        return f"larger than {MOST_BYTES >> 20} MiB"
    try:
        with open_regular(path) as file:
            content = file.read() if is_object else file.read(len(POINTER))
    except OSError:
        return ""
    if not content.strip():
        return "" if path.suffix == ".jinja" else "empty"
    if content.startswith(POINTER):
        return "a Git LFS pointer"
    try:
        return _fault_of_json(content) if is_object else ""
    except RecursionError:
        return "JSON that is nested too deeply"


def _fault_of_json(content: bytes) -> str:
    try:
        msgspec.json.decode(content, type=dict[str, msgspec.Raw])
        return ""
    except msgspec.ValidationError:
        return "no JSON object"
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass  # also for NaN and Infinity, which Python writes and reads
    try:
        return "" if isinstance(json.loads(content.decode()), dict) else "no JSON object"
    except ValueError as error:
        return f"no whole JSON ({error})"
