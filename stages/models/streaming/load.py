"""Loads a half without its layers and streams them from the checkpoint's files as they are needed.

How it works:

1. The placement puts the layers on disk and everything else on the device.
2. `load_half` loads the half with this device map. Accelerate's hooks, which would fetch a layer at
   each call, are left out; only the index of the weights is kept.
3. Weights that the files do not hold as they are computed with are written once to a temporary
   folder. A weight that cannot be read by itself raises CannotFit.
4. Calls cross the layers together: the lockstep requests each layer by number and announces the
   one that it expects next, which a thread reads during the computation (`layers.py`).
5. The temporary folder is deleted with the layers. Each load also deletes the folders of killed
   processes.
"""

import contextlib
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from artifacts.errors import CannotFit
from artifacts.files import own_folder
from artifacts.schema import Part
from stages.models.halves.load import load_half
from stages.models.halves.offload import dispatching, placement, waiting
from stages.models.hub.headers import TensorPlace, read_places
from stages.models.shards.layout import DTYPES
from stages.models.streaming.layers import ALIGNED, FileLayer, FileTensor, buffered_files
from stages.models.streaming.lockstep import LayerLockstep

Index = Mapping[str, Mapping[str, str]]
"""Name of a weight → its `safetensors_file`, and its `weight_name` there."""


class NotInFiles(Exception):
    """Raised for a weight that no file holds in the form in which it is computed."""


def layers_of(half: Any, paths: Sequence[str], index: Index, device: str) -> list[FileLayer]:
    """Return the layers at `paths`. Raises NotInFiles."""
    every = sorted({entry["safetensors_file"] for entry in index.values()})
    places = {file: read_places(Path(file)) for file in every}
    return [_layer(half.get_submodule(path), path, index, places, device) for path in paths]


def _layer(
    module: nn.Module,
    path: str,
    index: Index,
    places: Mapping[str, Mapping[str, TensorPlace]],
    device: str,
) -> FileLayer:
    found: list[FileTensor] = []
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
            FileTensor(
                owner=owner,
                name=name,
                shape=torch.Size(place.shape),
                dtype=empty.dtype,
                at=at,
                file=Path(file),
                place=place,
            )
        )
        size = at + empty.numel() * empty.dtype.itemsize
    return FileLayer(module=module, tensors=tuple(found), size=size)


def _empty(module: nn.Module, path: str) -> Iterator[tuple[nn.Module, str, str, torch.Tensor]]:
    """Yield owner, name, the owner's path and the tensor, for all tensors of a layer without
    data."""
    for inner, owner in module.named_modules():
        prefix = ".".join(filter(None, (path, inner))) + "."
        for name, tensor in (*owner._parameters.items(), *owner._buffers.items()):
            if tensor is not None and tensor.is_meta:
                yield owner, name, prefix, tensor


Made = TypeVar("Made")
ATTRIBUTE = "penstock_layers"
FOLDER = "penstock-layers-"


class StreamedLayers:
    """The streamed layers of a half, and how calls cross them."""

    def __init__(self, half: Any, paths: Sequence[str], index: Index, device: str) -> None:
        layers = layers_of(half, paths, index, device)
        self.paths = tuple(paths)
        """Module paths of the layers, in the order of their numbers."""
        self.count = len(layers)
        self.bytes = sum(layer.size for layer in layers)
        """Total bytes of all layers."""
        self.buffers = buffered_files(layers, device)
        self.lockstep = LayerLockstep([layer.module for layer in layers], self.buffers)

    def run_calls(self, calls: Sequence[Callable[[], Made]]) -> list[Made]:
        """Return the result of each call; each layer is fetched once for all calls."""
        return self.lockstep.run_calls(calls)


def streamed_layers(half: Any) -> StreamedLayers | None:
    """Return the layers of a half that was loaded by `load_streamed`; None for any other half."""
    found = half.__dict__.get(ATTRIBUTE)
    return found if isinstance(found, StreamedLayers) else None


def run_calls(half: Any, calls: Sequence[Callable[[], Made]]) -> list[Made]:
    """Return the result of each call of the half. Calls run together if its layers are streamed,
    else one after the other."""
    layers = streamed_layers(half)
    return [call() for call in calls] if layers is None else layers.run_calls(calls)


def load_streamed(
    path: Path,
    skeleton: Any,
    keep: Part,
    pieces: tuple[str, ...],
    device: str,
    options: dict[str, Any],
) -> Any:
    """Load a half as `load_half` does, without the weights of its layers. Raises CannotFit for a
    model whose layers cannot be fetched one by one."""
    places = placement(skeleton, keep, pieces, device, away="disk")
    index: dict[str, Mapping[str, str]] = {}

    def receive(model: Any, *, offload_index: Index, **_: Any) -> None:
        index.update(offload_index)

    with contextlib.ExitStack() as undo:
        # Weights whose stored form differs from the computed one are written there once.
        folder = str(undo.enter_context(own_folder(Path(tempfile.gettempdir()), FOLDER)))
        # Leave out the hooks that would fetch a layer at each call.
        with dispatching(receive):
            given = {**options, "device_map": places, "offload_folder": folder}
            half = load_half(path, keep, pieces=pieces, **given)
        try:
            layers = StreamedLayers(half, waiting(places), index, device)
        except NotInFiles as error:
            raise CannotFit(
                f"{error} of {type(half).__name__} cannot come from the model's files by itself",
                hint="Give it more memory, or choose a lower precision",
            ) from error
        weakref.finalize(layers, undo.pop_all().close)
    half.__dict__[ATTRIBUTE] = layers
    return half
