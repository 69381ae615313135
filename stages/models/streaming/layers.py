"""Finds the weights of layers in a checkpoint's files and reads them into memory."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stages.models.halves.ranged_reads import read_into
from stages.models.hub.headers import TensorPlace, read_places
from stages.models.shards.layout import DTYPES

ALIGNED = {"cpu": 64, "cuda": 512}
"""Alignment in bytes of a device's own memory. Rounding of sums depends on it, and results must
equal those of a half that is loaded whole."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tensor:
    """A tensor of a layer."""

    owner: nn.Module
    name: str
    """Name in its owner."""
    file: Path
    place: TensorPlace
    dtype: torch.dtype
    """Type in which the layer computes."""
    at: int
    """Offset in bytes in the layer's buffer."""

    @property
    def stored(self) -> torch.dtype:
        return DTYPES[self.place.dtype]

    def view(self, buffer: torch.Tensor) -> torch.Tensor:
        """Return the tensor as a view of a layer's buffer of bytes."""
        shape = torch.Size(self.place.shape)
        size = shape.numel() * self.dtype.itemsize
        return buffer[self.at : self.at + size].view(self.dtype).reshape(shape)


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """A layer whose weights are streamed."""

    module: nn.Module
    tensors: tuple[Tensor, ...]
    size: int
    """Bytes of the buffer that it needs."""

    def read(self, buffer: torch.Tensor, scratch: torch.Tensor) -> None:
        """Fill the buffer from the files. `scratch` holds the largest tensor whose stored type
        differs from the type in which it is computed."""
        for tensor in self.tensors:
            first, end = tensor.place.start, tensor.place.end
            if tensor.stored == tensor.dtype:
                read_into(buffer[tensor.at : tensor.at + end - first], tensor.file, first)
            else:
                raw = scratch[: end - first]
                read_into(raw, tensor.file, first)
                tensor.view(buffer).copy_(raw.view(tensor.stored).reshape(tensor.place.shape))

    def attach(self, buffer: torch.Tensor) -> None:
        """Make the layer compute with the content of the buffer."""
        for tensor in self.tensors:
            self._put(tensor, tensor.view(buffer))

    def detach(self) -> None:
        """Leave the layer without data."""
        for tensor in self.tensors:
            self._put(tensor, torch.empty(tensor.place.shape, dtype=tensor.dtype, device="meta"))

    def _put(self, tensor: Tensor, value: torch.Tensor) -> None:
        owner, name = tensor.owner, tensor.name
        if name in owner._buffers:
            owner._buffers[name] = value
        else:
            owner._parameters[name] = nn.Parameter(value, requires_grad=False)


Index = Mapping[str, Mapping[str, str]]
"""Name of a weight → its `safetensors_file`, and its `weight_name` there."""


class NotInFiles(Exception):
    """Raised for a weight that no file holds in the form in which it is computed."""


def layers_of(half: Any, paths: Sequence[str], index: Index, device: str) -> list[Layer]:
    """Return the layers at `paths`. Raises NotInFiles."""
    every = sorted({entry["safetensors_file"] for entry in index.values()})
    places = {file: read_places(Path(file)) for file in every}
    return [_layer(half.get_submodule(path), path, index, places, device) for path in paths]


def scratch_bytes(layers: Sequence[Layer]) -> int:
    """Return the bytes of the largest tensor that must be cast."""
    cast = (t.place for layer in layers for t in layer.tensors if t.stored != t.dtype)
    return max((place.end - place.start for place in cast), default=0)


def _layer(
    module: nn.Module,
    path: str,
    index: Index,
    places: Mapping[str, Mapping[str, TensorPlace]],
    device: str,
) -> Layer:
    found: list[Tensor] = []
    size, aligned = 0, ALIGNED[device.partition(":")[0]]
    for owner, name, prefix, empty in _empty(module, path):
        entry = index.get(prefix + name)
        file = "" if entry is None else entry["safetensors_file"]
        place = None if entry is None else places[file].get(entry["weight_name"])
        if place is None or place.dtype not in DTYPES or tuple(empty.shape) != place.shape:
            raise NotInFiles(prefix + name)
        # On a CPU without cast, keep the alignment that a mapped file would have.
        as_is = device == "cpu" and DTYPES[place.dtype] == empty.dtype
        offset = place.start % aligned if as_is else 0
        at = -(-size // aligned) * aligned + (offset if offset % empty.dtype.itemsize == 0 else 0)
        found.append(
            Tensor(owner=owner, name=name, file=Path(file), place=place, dtype=empty.dtype, at=at)
        )
        size = at + empty.numel() * empty.dtype.itemsize
    return Layer(module=module, tensors=tuple(found), size=size)


def _empty(module: nn.Module, path: str) -> Iterator[tuple[nn.Module, str, str, torch.Tensor]]:
    """Yield owner, name, the owner's path and the tensor, for all tensors of a layer without
    data."""
    for inner, owner in module.named_modules():
        prefix = ".".join(filter(None, (path, inner))) + "."
        for name, tensor in (*owner._parameters.items(), *owner._buffers.items()):
            if tensor is not None and tensor.is_meta:
                yield owner, name, prefix, tensor
