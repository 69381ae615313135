"""Plans the layout of tensors in safetensors files of bounded size. Reads and writes nothing.

A layout depends only on names, types and shapes. So every file's name, size and header are known
before the first byte is written. A resumed process finds what an earlier one wrote.
"""

import json
import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from stages.models.hub.checkpoint import SINGLE
from stages.models.shards import SHARD_BYTES

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
"""Types of stored weights, by their names in a header."""
DTYPE_NAMES = {dtype: word for word, dtype in DTYPES.items()}


class TensorSpec(NamedTuple):
    """One tensor to write."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Return the size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightShard:
    """One safetensors file to write."""

    name: str
    tensors: tuple[TensorSpec, ...]
    """Tensors in the order of their bytes, the widest types first. So each tensor begins at a
    multiple of its width, as readers expect."""

    @property
    def data_bytes(self) -> int:
        return sum(tensor.size for tensor in self.tensors)

    def header(self) -> bytes:
        """Return the header bytes that precede the tensors."""
        entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        at = 0
        for name, dtype, shape in self.tensors:
            end = at + math.prod(shape) * dtype.itemsize
            entries[name] = {"dtype": DTYPE_NAMES[dtype], "shape": shape, "data_offsets": [at, end]}
            at = end
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text


def lay_out(tensors: Iterable[TensorSpec], shard_bytes: int = SHARD_BYTES) -> list[WeightShard]:
    """Return the files for these tensors, in their order, with the names that `save_pretrained`
    uses."""
    groups: list[list[TensorSpec]] = [[]]
    filled = 0
    for tensor in tensors:
        if groups[-1] and filled + tensor.size > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += tensor.size
    return [
        WeightShard(
            name=SINGLE if len(groups) == 1 else f"model-{n:05d}-of-{len(groups):05d}.safetensors",
            tensors=tuple(sorted(group, key=lambda tensor: -tensor.dtype.itemsize)),
        )
        for n, group in enumerate(groups, 1)
    ]


def index_of(shards: Sequence[WeightShard]) -> dict[str, Any]:
    """Return the content of `model.safetensors.index.json` for these files."""
    return {
        "metadata": {"total_size": sum(shard.data_bytes for shard in shards)},
        "weight_map": {tensor.name: shard.name for shard in shards for tensor in shard.tensors},
    }
