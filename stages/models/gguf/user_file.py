"""Checks that a user's GGUF file is the language half of a checkpoint, and prepares it for
llama.cpp.

Its metadata must be what llama.cpp computes the decoder with, its tensors those of the decoder, its
tokens those of the tokenizer. Two fine-tunes of one model agree in all of that; their norms and
embeddings differ.

What llama.cpp gets of the file:

1. Never its tokenizer: Penstock's own is used, and a damaged one could harm.
2. If needed a copy with another header. Published files of Qwen2-VL and Qwen2.5-VL state an
   architecture whose epsilon of norms this version of llama.cpp does not read, and sections of the
   rotary dimensions that leave none for the order of tokens. The tensors are the same.
"""

import math
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import torch
from safetensors import safe_open

from artifacts.disk.faults import fault_of
from artifacts.disk.files import HALF
from artifacts.errors import UsageError
from stages.models.gguf.half import TensorRows, core_names
from stages.models.gguf.header import (
    END,
    HEAD,
    TABLE,
    TOKENS,
    TYPES,
    GgufHeader,
    in_line,
    read_header,
)
from stages.models.gguf.llama_context import file_type
from stages.models.gguf.mapping import TextMapping, mapping_of
from stages.models.shards.layout import check_free

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

EQUIVALENT = {"qwen2vl": "paddleocr", "mistral3": "llama"}
"""Architecture of a file → the one as which it is loaded: the same computation."""
SECTIONS = "rope.dimension_sections"
WINDOWED = "attention.sliding_window_pattern"
PERIODS = {"gemma3": 6, "cohere2": 4}
"""Architecture → one in so many layers sees all tokens, if a file does not state which."""
UNREAD = frozenset({"context_length", "vocab_size"})
"""Metadata that changes no logits."""
NEUTRAL: Mapping[str, Any] = {
    "rope.scaling.type": "none",
    "rope.scaling.factor": 1.0,
    "attention.causal": True,
    "attention.sliding_window": 0,
    "expert_count": 0,
    "expert_used_count": 0,
}
"""Metadata that a file may have beyond what is needed → the value that changes nothing."""
SAMPLES = 64
"""Rows of the embedding table that are compared."""
CLOSE, CLOSE_IN_FEW_BITS = 0.99, 0.9
"""Least cosine of two embedding tables, and that of types with less than 4 bits a number."""
ANOTHER = "has other values than the checkpoint's, as those of another fine-tune are"
ROUNDING = 1e-3
"""Largest relative difference of norms, which are rounded to the checkpoint's type."""
Stored = Mapping[str, tuple[Path, str]]
"""Path of a weight in the model → its file, and its name there."""


def compared(
    file: Path, config: "PreTrainedConfig", skeleton: "PreTrainedModel", stored: Stored
) -> tuple[GgufHeader, TextMapping]:
    """Compare a file with a checkpoint, of whose weights those in `stored` are local. Return its
    header, and how the checkpoint's decoder is mapped. Raises UsageError."""
    header, mapping = read_header(file), mapping_of(config, "the checkpoint")
    _check_file(header, skeleton, mapping)
    _check_weights(header, skeleton, mapping, stored)
    return header, mapping


def _check_file(header: GgufHeader, skeleton: "PreTrainedModel", mapping: TextMapping) -> None:
    """Compare metadata and tensors with those that the checkpoint's decoder has. Raises
    UsageError."""
    stated, own = header.architecture, mapping.architecture
    architectures = [own, *(name for name, same in EQUIVALENT.items() if same == own)]
    if stated not in architectures:
        raise unfit(
            header,
            f"its architecture is {stated or 'not stated'}, and not {' or '.join(architectures)}",
        )
    if header.values.get("split.count", 0) not in (0, 1):  # merged parts state 0
        raise unfit(header, "it is a part of a split file", "Merge the parts: llama-gguf-split")
    _check_metadata(header, mapping)
    expected = expected_shapes(skeleton, mapping)
    configs = (skeleton.config, mapping.config)
    tied = any(getattr(config, "tie_word_embeddings", False) for config in configs)
    if missing := sorted(expected.keys() - header.tensors.keys() - ({HEAD} if tied else set())):
        raise unfit(header, f"it lacks {missing[0]}")
    for name, tensor in header.tensors.items():
        if name not in expected:
            raise unfit(header, f"it has {name}, which the checkpoint's decoder lacks")
        shape = expected[name]
        # Rows of a vocabulary are padded differently.
        if tensor.shape[1:] != shape[1:] or (name not in (TABLE, HEAD) and tensor.shape != shape):
            has = f"{name} has the shape {tensor.shape}"
            raise unfit(header, f"{has}, and in the checkpoint's decoder {shape}")


def own_metadata(mapping: TextMapping, rows: int) -> dict[str, Any]:
    """Return what llama.cpp computes the decoder with: key without the architecture → value."""
    writer = gguf.GGUFWriter("", mapping.architecture)
    mapping.add_metadata(writer, rows)
    prefix = f"{mapping.architecture}."
    values = {key: value.value for key, value in writer.kv_data[0].items()}
    return {k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)}


def _check_metadata(header: GgufHeader, mapping: TextMapping) -> None:
    prefix = f"{header.architecture}."
    stated = {k.removeprefix(prefix): v for k, v in header.values.items() if k.startswith(prefix)}
    expected = own_metadata(mapping, header.tensor(TABLE).shape[0])
    heads, width = expected["attention.head_count"], expected["embedding_length"]
    implied = {
        "attention.head_count_kv": heads,
        "attention.key_length": width // heads,
        "attention.value_length": width // heads,
        "rope.dimension_count": expected.get("attention.key_length", width // heads),
        **dict.fromkeys(("rope.freq_base", "rope.freq_base_swa"), 10000.0),
    }
    if period := PERIODS.get(header.architecture):
        layers = range(1, expected["block_count"] + 1)
        implied[WINDOWED] = tuple(layer % period > 0 for layer in layers)
    for key in sorted((expected.keys() | stated.keys()) - UNREAD):
        actual = stated.get(key, implied.get(key) if key in expected else None)
        wanted = expected.get(key, NEUTRAL.get(key))
        if not _equal(key, actual, wanted):
            has = "is missing" if actual is None else f"is {actual}"
            needs = "has none" if wanted is None else f"needs {wanted}"
            raise unfit(header, f"its {prefix}{key} {has}, and the checkpoint's decoder {needs}")


def _equal(key: str, actual: Any, wanted: Any) -> bool:
    if key == SECTIONS and isinstance(actual, tuple) and wanted is not None:
        return [n for n in actual if n] == [n for n in wanted if n]
    if isinstance(actual, tuple):
        return isinstance(wanted, list | tuple) and list(actual) == list(wanted)
    if isinstance(actual, float | int) and isinstance(wanted, float | int):
        return math.isclose(actual, wanted, rel_tol=1e-6)
    return type(actual) is type(wanted) and bool(actual == wanted)


def expected_shapes(
    skeleton: "PreTrainedModel", mapping: TextMapping
) -> dict[str, tuple[int, ...]]:
    """Return the tensors of the decoder and the output head: name in a GGUF file → shape."""
    shapes = {
        name: tuple(mapping.changed(path, weight).shape)
        for name, path, weight in _weights(skeleton, mapping)
    }
    return shapes | {name: tuple(values.shape) for name, values in mapping.added().items()}


def _weights(
    skeleton: "PreTrainedModel", mapping: TextMapping
) -> Iterator[tuple[str, str, torch.Tensor]]:
    """Yield each weight of the decoder and the output head: its name in a GGUF file, its path in
    the model, and itself. Raises UsageError for one that has no place there."""
    for path, name in core_names(skeleton, mapping).items():
        if name is None:
            raise UsageError(
                f"--language-gguf: files of {mapping.architecture} have no place for {path}",
                hint="Leave it out: this decoder is not mapped to GGUF",
            )
        yield name, path, skeleton.get_parameter(path)


def check_tokens(header: GgufHeader, tokenizer: Any, placeholders: Collection[str]) -> None:
    """Compare the file's tokens, if it has any, with the tokenizer's. `placeholders` stand for
    images, and never reach the file. Raises UsageError."""
    vocabulary: Mapping[str, int] = tokenizer.get_vocab()
    rows, last = header.tensor(TABLE).shape[0], max(vocabulary.values())
    if last >= rows:
        raise unfit(header, f"it has {rows} tokens, and the tokenizer's last one is {last}")
    ended = header.values.get(TOKENS)
    if not isinstance(ended, bytearray):
        return
    tokens = ended.split(END, last + 1)[:-1]
    for token, at in sorted(vocabulary.items(), key=lambda pair: pair[1]):
        actual = tokens[at].decode() if at < len(tokens) else None
        # llama.cpp's converter writes spaces as such in tokens that were added to the vocabulary.
        if actual not in (token, token.replace("▁", " ")) and token not in placeholders:
            raise unfit(header, f"its token {at} is {actual!r}, and the tokenizer's {token!r}")


def _check_weights(
    header: GgufHeader, skeleton: "PreTrainedModel", mapping: TextMapping, stored: Stored
) -> None:
    """Compare norms and some embeddings with those that the checkpoint holds. Raises UsageError."""
    for name, path, weight in _weights(skeleton, mapping):
        if path not in stored:
            continue
        file, own = stored[path]
        if name in (TABLE, HEAD):
            # Without a head of its own, the file's embedding table is the head.
            _check_table(header, name if name in header.tensors else TABLE, file, own)
        elif weight.ndim == 1 and name.endswith("norm.weight"):
            actual = TensorRows(header, name).numbers()[0]
            wanted = mapping.changed(path, _rows(file, own, None)).numpy()
            if not np.allclose(actual, wanted, ROUNDING, ROUNDING * np.abs(wanted).max()):
                raise unfit(header, f"its {name} {ANOTHER}")


def _check_table(header: GgufHeader, name: str, file: Path, own: str) -> None:
    tensor = header.tensor(name)
    with safe_open(file, "pt", backend="pread") as weights:
        shape, dtype = weights.get_slice(own).get_shape(), weights.get_slice(own).get_dtype()
    if len(shape) != 2 or not dtype.startswith(("F", "BF")):
        return  # quantized
    rows = min(shape[0], tensor.shape[0])
    ids = np.unique(np.linspace(0, rows - 1, SAMPLES).astype(np.int64)).tolist()
    actual, wanted = TensorRows(header, name).numbers(ids), _rows(file, own, ids).numpy()
    lengths = np.linalg.norm(actual, axis=1) * np.linalg.norm(wanted, axis=1)
    cosines = (actual * wanted).sum(1)[lengths > 0] / lengths[lengths > 0]
    _, block, size = TYPES[tensor.type]
    least = CLOSE if 8 * size >= 4 * block else CLOSE_IN_FEW_BITS
    if not len(cosines) or not np.median(cosines) > least:
        raise unfit(header, f"its {name} {ANOTHER}")


def _rows(file: Path, name: str, ids: list[int] | None) -> torch.Tensor:
    """Return a vector, or rows of a matrix, of a checkpoint."""
    # Not mapped: a writable map counts fully against a memory limit.
    with safe_open(file, "pt", backend="pread") as weights:
        if ids is None:
            vector: torch.Tensor = weights.get_tensor(name)
            return vector.float()
        matrix = weights.get_slice(name)
        return torch.cat([matrix[at : at + 1] for at in ids]).float()


def unfit(header: GgufHeader, why: str, hint: str = "") -> UsageError:
    """Return the error about a file that is not the language half of the checkpoint."""
    return UsageError(
        f"{header.path} does not fit the checkpoint: {in_line(why)}",
        hint=hint or "Give a GGUF file of the language half of exactly this checkpoint",
    )


MORE_ROOM = "Free some space, or keep the store on a larger disk: --store"
BLOCK_BYTES = 16 << 20
"""Bytes that are copied at a time."""


def fitted(
    file: Path, config: "PreTrainedConfig", skeleton: "PreTrainedModel", stored: Stored, copy: Path
) -> Path:
    """Compare a user's file as `compared` does. Return the file that llama.cpp loads: that one, or
    a `copy` that is made if it is not there. Raises UsageError, EnvironmentFault."""
    header, mapping = compared(file, config, skeleton, stored)
    rows = header.tensor(TABLE).shape[0]
    sections = own_metadata(mapping, rows).get(SECTIONS)
    stated = header.values.get(f"{header.architecture}.{SECTIONS}")
    same = sections is None or list(sections) == list(stated or ())
    if header.architecture == mapping.architecture and same:
        return header.path
    half = copy.with_name(f"{HALF}{os.getpid()}-{copy.name}")
    try:
        if copy.exists():
            with suppress(OSError):  # it is another user's
                os.utime(copy)  # `penstock cache gc` deletes copies that were not used for long
            return copy
        copy.parent.mkdir(parents=True, exist_ok=True)
        check_free(copy.parent, header.path.stat().st_size, MORE_ROOM)
        _write(half, header, mapping, rows)
        half.replace(copy)
    except OSError as error:
        raise fault_of(error, copy.parent) from error
    finally:
        half.unlink(missing_ok=True)
    return copy


def _write(path: Path, header: GgufHeader, mapping: TextMapping, rows: int) -> None:
    writer = gguf.GGUFWriter(path, mapping.architecture)
    mapping.add_metadata(writer, rows)
    writer.add_tokenizer_model("none")
    if (stated := file_type(header)) is not None:
        writer.add_file_type(stated)
    writer.add_custom_alignment(header.alignment)
    for name, tensor in header.tensors.items():
        kind = gguf.GGMLQuantizationType(tensor.type)
        number = np.dtype(np.float32)
        writer.add_tensor_info(name, tensor.shape, number, tensor.bytes, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("ab") as target, header.path.open("rb") as source:
        target.write(bytes(-target.tell() % header.alignment))
        source.seek(header.data_start)
        shutil.copyfileobj(source, target, BLOCK_BYTES)
        target.flush()
        os.fsync(target.fileno())
    read_header(path)
