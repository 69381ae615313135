"""GGUF files as the converters of other programs write them: their names of architectures, their
sections of rotary dimensions, tokens of the tokenizer, and a chat template."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from stages.models.gguf.header import TYPES, GgufHeader, read_header

TEMPLATE = "{{ ''.__class__.__mro__[1].__subclasses__() }}{{ 9 ** 9 ** 9 }}"
"""A chat template that nobody must render."""
PUBLISHED = {"paddleocr": "qwen2vl"}
"""Architecture that llama.cpp computes → the one that converters write for the same models."""
SIZES = ("attention.key_length", "attention.value_length")
LEFT_OUT = {
    "gemma": ("rope.dimension_count", "rope.freq_base"),
    "gemma3": (
        *("rope.dimension_count", "rope.freq_base_swa"),
        "attention.sliding_window_pattern",
    ),
    "glm4": SIZES,
}
"""Architecture → metadata that llama.cpp's converter does not write for it."""


def published(
    own: Path,
    path: Path,
    *,
    tokens: Sequence[str] = (),
    changes: Mapping[str, Any] | None = None,
    weights: Mapping[str, Any] | None = None,
    without: Sequence[str] = (),
    general: Mapping[str, Any] | None = None,
) -> Path:
    """Write the content of a file of gguf_writer as a converter would. `changes`: metadata without
    its architecture → other value, or None for none. `weights`: tensors with other numbers.
    `general`: metadata of no architecture."""
    header = read_header(own)
    architecture = PUBLISHED.get(header.architecture, header.architecture)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("Published")
    writer.add_description("A file of somebody")
    stated = {"general.file_type": int(header.values["general.file_type"]), **(general or {})}
    for key, value in stated.items():
        _add(writer, key, value)
    for key, value in {**_metadata(header), **(changes or {})}.items():
        _add(writer, f"{architecture}.{key}", value)
    if tokens:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("qwen2")
        writer.add_token_list(list(tokens))
        writer.add_token_types([1] * len(tokens))
        writer.add_token_merges([])
        writer.add_chat_template(TEMPLATE)
    data = np.fromfile(own, np.uint8)
    for name, tensor in header.tensors.items():
        if name in without:
            continue
        start = header.data_start + tensor.offset
        found = data[start : start + tensor.bytes].reshape(*tensor.shape[:-1], -1)
        kind = gguf.GGMLQuantizationType(tensor.type)
        if weights and name in weights:
            found = np.ascontiguousarray(gguf.quantize(weights[name], kind)).view(np.uint8)
        if TYPES[tensor.type][0] == "F32":
            writer.add_tensor(name, found.view(np.float32))
        else:
            writer.add_tensor(name, found, raw_dtype=kind)
    for name in (weights or {}).keys() - header.tensors.keys():
        writer.add_tensor(name, weights[name])  # type: ignore[index]
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _metadata(header: GgufHeader) -> dict[str, Any]:
    prefix = f"{header.architecture}."
    found = {k.removeprefix(prefix): v for k, v in header.values.items() if k.startswith(prefix)}
    if sections := found.get("rope.dimension_sections"):
        sizes = [size for size in sections if size]
        found["rope.dimension_sections"] = (*sizes, *[0] * (4 - len(sizes)))
    left_out = LEFT_OUT.get(header.architecture, (*SIZES, "rope.dimension_count"))
    return {key: value for key, value in found.items() if key not in (*left_out, "vocab_size")}


def _add(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif value is not None:
        writer.add_array(key, [int(each) for each in value])


def numbers_of(own: Path, name: str) -> Any:
    """The numbers of a tensor of 32 bit."""
    header = read_header(own)
    tensor = header.tensors[name]
    start = header.data_start + tensor.offset
    data = np.fromfile(own, np.uint8)[start : start + tensor.bytes]
    return data.view(np.float32).reshape(tensor.shape).copy()


def tokens_of(checkpoint: Path, own: Path) -> list[str]:
    """The tokens of a checkpoint's tokenizer, one for each row of a file."""
    from transformers import AutoTokenizer

    vocabulary = AutoTokenizer.from_pretrained(str(checkpoint)).get_vocab()
    rows = read_header(own).tensors["token_embd.weight"].shape[0]
    tokens = [f"[PAD{at}]" for at in range(rows)]
    for token, at in vocabulary.items():
        tokens[at] = token
    return tokens
