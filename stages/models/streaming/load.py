"""Loads a half without its layers and streams them from the checkpoint's files as they are needed.

How it works:

1. The placement puts the layers on disk and everything else on the device.
2. `load_half` loads the half with this device map. Accelerate's hooks, which would fetch a layer at
   each call, are left out; only the index of the weights is kept.
3. Weights that the files do not hold as they are computed with are written once to a temporary
   folder. A weight that cannot be read by itself raises CannotFit.
4. Two buffers are allocated, each as large as the largest layer. On a GPU each has a twin in pinned
   host memory.
5. Calls cross the layers together: the lockstep requests each layer by number and announces the
   one that it expects next.
6. A reader thread fills the other buffer with the expected layer during the computation. On a GPU
   the copy runs on its own CUDA stream, ordered by events.
7. When a layer has been read, its parameters are pointed at the buffer. Afterwards they are
   detached and the buffer is free again. A failed read empties the buffer, so that a retry reads it
   again.
8. The temporary folder is deleted with the layers. Each load also deletes the folders of killed
   processes.
"""

import contextlib
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from artifacts.errors import CannotFit
from artifacts.files import delete_folders_of_dead
from artifacts.schema import Part
from stages.models.halves.load import load_half
from stages.models.halves.offload import dispatching, placement, waiting
from stages.models.halves.pinned_reads import PinnedBuffer
from stages.models.halves.ranged_reads import read_into
from stages.models.hub.headers import TensorPlace, read_places
from stages.models.shards.layout import DTYPES
from stages.models.streaming.lockstep import LayerLockstep

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


EMPTY = -1


class HostLayerBuffer:
    """A buffer for one layer of a half that computes on the CPU."""

    def __init__(self, size: int) -> None:
        self._memory = torch.empty(size, dtype=torch.uint8)

    def fill(self, layer: Layer, scratch: torch.Tensor) -> None:
        """Read the layer into the buffer; called by the reader thread."""
        layer.read(self._memory, scratch)

    def memory(self) -> torch.Tensor:
        """Return the buffer's bytes; later computations may read them."""
        return self._memory

    def release(self) -> None:
        """Mark the buffer as free: later computations do not read it."""


class DeviceLayerBuffer:
    """A buffer on a GPU, with a twin in pinned host memory from which it is filled. The copy runs
    on its own CUDA stream, during the computation."""

    def __init__(self, size: int, device: torch.device, stream: torch.cuda.Stream) -> None:
        self._host = PinnedBuffer(size)
        self._memory = torch.empty(size, dtype=torch.uint8, device=device)
        self._device, self._stream = device, stream
        self._free = torch.cuda.Event()

    def fill(self, layer: Layer, scratch: torch.Tensor) -> None:
        self._host.wait()
        layer.read(self._host.memory, scratch)
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(self._free)
            self._host.send(self._memory[: layer.size], self._stream)

    def memory(self) -> torch.Tensor:
        torch.cuda.current_stream(self._device).wait_event(self._host.sent)
        return self._memory

    def release(self) -> None:
        self._free.record(torch.cuda.current_stream(self._device))


class LayerDoubleBuffer:
    """The layers of one half and the two buffers; loads them for the lockstep."""

    def __init__(self, layers: Sequence[Layer], device: str) -> None:
        self._layers = layers
        self.fetched = 0
        """Number of layers read so far."""
        size = max(layer.size for layer in layers)
        cast = [t.place for layer in layers for t in layer.tensors if t.stored != t.dtype]
        largest = max((place.end - place.start for place in cast), default=0)
        self._scratch = torch.empty(largest, dtype=torch.uint8)
        self._rooms = rooms(size, device)
        self._holds = [EMPTY for _ in self._rooms]
        """The layer that each buffer holds or will hold."""
        self._filled: dict[int, Future[None]] = {}
        self._open = EMPTY
        """The buffer in use by the current computation."""
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="layers")

    def prefetch(self, layer: int) -> None:
        if layer not in self._holds:
            others = [room for room in range(len(self._rooms)) if room != self._open]
            room = min(others, key=lambda other: self._holds[other] != EMPTY)
            self._holds[room] = layer
            self._filled[room] = self._reader.submit(self._fill, room, layer)

    def load(self, layer: int) -> None:
        self.prefetch(layer)
        room = self._holds.index(layer)
        try:
            self._filled[room].result()
        except BaseException:  # a retry reads the layer again
            self._holds[room] = EMPTY
            raise
        self._layers[layer].attach(self._rooms[room].memory())
        self._open = room

    def release(self, layer: int) -> None:
        self._layers[layer].detach()
        self._rooms[self._open].release()
        self._open = EMPTY

    def _fill(self, room: int, layer: int) -> None:
        self._rooms[room].fill(self._layers[layer], self._scratch)
        self.fetched += 1


def rooms(size: int, device: str) -> Sequence[HostLayerBuffer | DeviceLayerBuffer]:
    """Make two buffers of `size` bytes."""
    if device == "cpu":
        return [HostLayerBuffer(size) for _ in range(2)]
    place, stream = torch.device(device), torch.cuda.Stream(device)
    return [DeviceLayerBuffer(size, place, stream) for _ in range(2)]


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
        self.buffers = LayerDoubleBuffer(layers, device)
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
        folder = new_folder()
        undo.callback(shutil.rmtree, folder, ignore_errors=True)
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


def new_folder() -> str:
    """Make a temporary folder for weights, and delete those of killed processes."""
    delete_folders_of_dead(Path(tempfile.gettempdir()), FOLDER)
    return tempfile.mkdtemp(prefix=f"{FOLDER}{os.getpid()}-")
