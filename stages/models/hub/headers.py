"""Reads tensor names, types and shapes from safetensors headers, local or on the hub. Reads no
weights.

Refuses unsupported checkpoint formats by their configuration, with the reason and a form that
works.
"""

import contextlib
import json
import os
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from artifacts.errors import EnvironmentFault, UsageError
from artifacts.regular_files import open_regular
from stages.models.hub import transfer
from stages.models.hub.checkpoint import (
    DOWNLOAD_HINT,
    INDEX,
    SINGLE,
    Checkpoint,
    WeightFile,
    class_names,
    not_whole,
    read_config,
    weight_names,
)
from stages.models.hub.hub_errors import hub_errors, refuse_offline

Config = Mapping[str, Any]
THINKER = (
    "Save its thinker: {cls}.from_pretrained(MODEL).save_pretrained(DIR), and "
    "AutoProcessor.from_pretrained(MODEL).save_pretrained(DIR); then give DIR"
)

FIRST_COGVLM_VOCABULARY = 32000
"""Vocabulary size of the first CogVLM; the second one's is four times as large."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UnsupportedForm:
    """A published checkpoint format that cannot be read."""

    name: str
    """Short name, for the table in the documentation."""
    found: Callable[[Config], bool]
    """Function that returns whether a configuration has this form."""
    reason: str
    alternative: str
    """A form that works."""
    own_code: bool = False
    """Whether code from the checkpoint may be tried if it is trusted."""


def _is(*types: str) -> Callable[[Config], bool]:
    return lambda config: config.get("model_type") in types


def _architecture_names(*classes: str) -> Callable[[Config], bool]:
    return lambda config: bool({*classes} & {*class_names(config)})


def _is_first_cogvlm(config: Config) -> bool:
    size = config.get("vocab_size")
    small = isinstance(size, int) and size <= FIRST_COGVLM_VOCABULARY
    return (
        _architecture_names("CogVLMForCausalLM")(config)
        and small
        and "num_multi_query_heads" not in config
    )


def _is_first_florence(config: Config) -> bool:
    text = config.get("text_config")
    kind = text.get("model_type") if isinstance(text, dict) else None
    return _is("florence2")(config) and kind == "florence2_language"


UNSUPPORTED: tuple[UnsupportedForm, ...] = (
    UnsupportedForm(
        name="Qwen2.5-Omni",
        found=_is("qwen2_5_omni"),
        reason="it is a thinker, which sees and writes, together with a talker, and only a "
        "thinker by itself is read",
        alternative=THINKER.format(cls="Qwen2_5OmniThinkerForConditionalGeneration"),
    ),
    UnsupportedForm(
        name="Qwen3-Omni",
        found=_is("qwen3_omni_moe"),
        reason="it is a thinker, which sees and writes, together with a talker, and only a "
        "thinker by itself is read",
        alternative=THINKER.format(cls="Qwen3OmniMoeThinkerForConditionalGeneration"),
    ),
    UnsupportedForm(
        name="Phi-4-multimodal",
        found=_is("phi4_multimodal", "phi4mm"),
        reason="it reads pictures inside its text embedding, with adapters that it switches by "
        "itself, and transformers has it as no class of the image-text-to-text kind",
        alternative="Take Qwen/Qwen2.5-VL-7B-Instruct or Qwen/Qwen2.5-VL-3B-Instruct, of about its "
        "size",
        own_code=True,
    ),
    UnsupportedForm(
        name="Florence-2 of Microsoft",
        found=_is_first_florence,
        reason="its files are in the form of the original code, which transformers does not read",
        alternative="Take the same weights as transformers reads them: "
        "florence-community/Florence-2-base or florence-community/Florence-2-large",
        own_code=True,
    ),
    UnsupportedForm(
        name="CogVLM, the first",
        found=_is_first_cogvlm,
        reason="it is the first CogVLM, of which only the second is computed here",
        alternative="Take zai-org/cogvlm2-llama3-chat-19B, or zai-org/cogvlm2-llama3-caption for "
        "videos",
    ),
    UnsupportedForm(
        name="MiniCPM-V and MiniCPM-o up to 4.5",
        found=_is("minicpmv", "minicpmo"),
        reason="it runs only by its own code, of which no half can be loaded",
        alternative="Take openbmb/MiniCPM-V-4.6, which transformers reads",
        own_code=True,
    ),
    UnsupportedForm(
        name="InternVL in the form of its own code",
        found=_is("internvl_chat"),
        reason="its files are in the form of the original code, which transformers does not read",
        alternative="Take the same weights under an id that ends in -hf, such as "
        "OpenGVLab/InternVL3-1B-hf",
        own_code=True,
    ),
    UnsupportedForm(
        name="Moondream",
        found=lambda config: (
            _is("moondream1", "moondream")(config)
            or _architecture_names("HfMoondream", "Moondream")(config)
        ),
        reason="it runs only by its own code, of which no half can be loaded",
        alternative="Take HuggingFaceTB/SmolVLM2-2.2B-Instruct, of about its size",
        own_code=True,
    ),
)
"""Checkpoint forms that users often try."""


def refuse_unsupported(folder: Path, trusted: bool) -> None:
    """Refuse a checkpoint in one of these forms. If it is `trusted` and has its own code, that code
    may be tried. Raises UsageError."""
    config = read_config(folder)
    form = next((form for form in UNSUPPORTED if form.found(config)), None)
    if form is None or (trusted and form.own_code and "auto_map" in config):
        return
    raise UsageError(f"{folder} cannot be read: {form.reason}", hint=form.alternative)


AT_ONCE = 8
"""Headers requested from the hub at a time."""
HEADER_BYTES = 100_000_000
"""Maximum bytes of a header: the limit of safetensors itself."""
MAX_NUMBER = 1 << 63
"""Exclusive upper bound of sizes and offsets in a header."""


class Header(NamedTuple):
    """One tensor as a safetensors header describes it."""

    name: str
    shard: str
    dtype: str
    shape: tuple[int, ...]
    size: int


class TensorPlace(NamedTuple):
    """The location of one tensor in its file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    """Offset in bytes from the file's start."""
    end: int


def read_headers(checkpoint: Checkpoint) -> list[Header]:
    """Return all tensors of a checkpoint's safetensors files, file by file. Raises EnvironmentFault
    for an incomplete file."""
    absent = {file.name: file for file in checkpoint.missing()}
    if absent:
        refuse_offline(checkpoint, list(absent.values()))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        requests = {name: pool.submit(_ask_hub, checkpoint, file) for name, file in absent.items()}
        found = [
            requests[name].result() if name in requests else _read_header(checkpoint.folder / name)
            for name in _names(checkpoint.folder)
        ]
    return [header for headers in found for header in headers]


def _names(folder: Path) -> list[str]:
    found = sorted(path.name for path in folder.glob("*.safetensors"))
    if (folder / INDEX).exists() or SINGLE in found or not found:
        return weight_names(folder)
    return found


def _ask_hub(checkpoint: Checkpoint, file: WeightFile) -> list[Header]:
    """Return the tensors of a remote file by requesting its header."""
    from huggingface_hub import HfApi

    with hub_errors(checkpoint.name, checkpoint.commit):
        for seconds in (*transfer.WAITS, None):
            try:
                found = HfApi().parse_safetensors_file_metadata(
                    checkpoint.name, file.name, revision=checkpoint.commit
                )
                break
            except Exception as error:
                if seconds is None or not transfer.is_transient(error):
                    raise
                time.sleep(seconds)
    return [
        Header(name, file.name, str(t.dtype), tuple(t.shape), t.data_offsets[1] - t.data_offsets[0])
        for name, t in found.tensors.items()
    ]


def _read_header(path: Path) -> list[Header]:
    """Return the tensors of one file, after checking its length."""
    return [
        Header(name, path.name, place.dtype, place.shape, place.end - place.start)
        for name, place in read_places(path).items()
    ]


def read_metadata(path: Path) -> dict[str, Any]:
    """Return the metadata of a local file. Raises EnvironmentFault for an incomplete one."""
    with _read(path) as (_, _, entries):
        return dict(entries.get("__metadata__") or {})


def read_places(path: Path) -> dict[str, TensorPlace]:
    """Return tensor → place in a local file. Raises EnvironmentFault if the file is too short."""
    found = {}
    with _read(path) as (size, first, entries):
        for tensor, entry in entries.items():
            if tensor != "__metadata__":
                start, end = entry["data_offsets"]
                shape = tuple(entry["shape"])
                numbers = (start, end, *shape)
                if not all(type(n) is int and 0 <= n < MAX_NUMBER for n in numbers) or start > end:
                    raise not_whole(path)
                found[tensor] = TensorPlace(str(entry["dtype"]), shape, first + start, first + end)
                if first + end > size:
                    raise not_whole(path)
    return found


@contextlib.contextmanager
def _read(path: Path) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Read a file's header: file size, start of the data, and the entry of each tensor. Raises
    EnvironmentFault, also if the block finds an entry invalid."""
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            length = struct.unpack("<Q", file.read(8))[0]
            # A text file, such as a Git LFS pointer, looks like a header that is too long.
            if 8 + length > size or length > HEADER_BYTES:
                raise not_whole(path)
            entries = json.loads(file.read(length))
        yield size, 8 + length, entries
    except OSError as error:
        raise EnvironmentFault(
            f"{path}: the model's weights cannot be read ({error.strerror})",
            hint=DOWNLOAD_HINT,
        ) from error
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise not_whole(path) from error
