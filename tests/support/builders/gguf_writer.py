"""Writes the language half of a checkpoint as a GGUF file, as llama.cpp's converter orders its
numbers, with the metadata that llama.cpp computes with and no tokenizer."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors import safe_open

from stages.models.gguf.half import core_names
from stages.models.gguf.header import HEAD, TABLE
from stages.models.gguf.mapping import TextMapping, mapping_of
from stages.models.halves.model_class import config_and_class, skeleton_of
from stages.models.loading import stored_weights

F32, F16 = gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16


def write_gguf(folder: Path, path: Path, kind: str = "f32") -> Path:
    """Write the text decoder and the output head of a checkpoint in a folder, with matrices of a
    kind: `f32`, `f16`, `bf16`, `q8_0` or `q4_0`. Return the path."""
    config, cls = config_and_class(folder, False)
    mapping, skeleton = mapping_of(config, str(folder)), skeleton_of(config, cls)
    matrix = gguf.GGMLQuantizationType[kind.upper()]
    found = dict(mapping.added())
    stored = stored_weights(folder, skeleton)
    for own, name in core_names(skeleton, mapping).items():
        if name is not None and own in stored and not (name == HEAD and mapping.made.tied):
            file, key = stored[own]
            with safe_open(file, "pt") as weights:
                weight = mapping.changed(own, weights.get_tensor(key).float())
            found[name] = turned(mapping, own, weight)
    writer = gguf.GGUFWriter(path, mapping.architecture)
    mapping.add_metadata(writer, found[TABLE].shape[0])
    writer.add_tokenizer_model("none")
    stated = "ALL_F32" if kind == "f32" else f"MOSTLY_{kind.upper()}"
    writer.add_file_type(gguf.LlamaFileType[stated])
    for name, weight in found.items():
        large = weight.ndim == 2 and "shortconv.conv" not in name
        _add(writer, name, weight.contiguous().numpy(), matrix if large else F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: Any, name: str, numbers: Any, kind: gguf.GGMLQuantizationType) -> None:
    try:
        content = gguf.quants.quantize(numbers, kind)
    except gguf.QuantError:  # its columns are no multiple of a block
        content, kind = numbers.astype(np.float16), F16
    writer.add_tensor(name, content, raw_dtype=kind)


def turned(mapping: TextMapping, path: str, weight: torch.Tensor) -> torch.Tensor:
    """Return a weight with the rows of each head in the order in which llama.cpp rotates them."""
    for name, heads in (("q_proj", mapping.heads), ("k_proj", mapping.kv_heads)):
        if f".{name}." in path and mapping.architecture == "llama":
            return interleaved(weight, heads)
        if f".{name}." in path and mapping.made.partial:
            share = mapping.rope.get("partial_rotary_factor", 1.0)
            return parted(weight, heads, int(mapping.head_size * share))
    return weight


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Return rows [heads x size, ...] with the two halves of each head interleaved."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def parted(weight: torch.Tensor, heads: int, rotated: int) -> torch.Tensor:
    """Return rows [heads x size, ...] with the even ones of the first `rotated` of each head before
    the odd ones."""
    rows = weight.reshape(heads, -1, *weight.shape[1:])
    parts = (rows[:, 0:rotated:2], rows[:, 1:rotated:2], rows[:, rotated:])
    return torch.cat(parts, 1).reshape(weight.shape)
