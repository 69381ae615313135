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
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from artifacts.errors import CannotFit
from artifacts.schema import Part
from stages.models.halves.load import load_half
from stages.models.halves.offload import dispatching, placement, waiting
from stages.models.streaming.layers import Index, Layer, NotInFiles, layers_of, scratch_bytes
from stages.models.streaming.lockstep import LayerLockstep

EMPTY = -1


class LayerBuffer(Protocol):
    """A buffer for one layer."""

    def fill(self, layer: Layer, scratch: torch.Tensor) -> None:
        """Read the layer into the buffer; called by the reader thread."""

    def memory(self) -> torch.Tensor:
        """Return the buffer's bytes; later computations may read them."""

    def release(self) -> None:
        """Mark the buffer as free: later computations do not read it."""


class HostLayerBuffer:
    """A buffer of a half that computes on the CPU."""

    def __init__(self, size: int) -> None:
        self._memory = torch.empty(size, dtype=torch.uint8)

    def fill(self, layer: Layer, scratch: torch.Tensor) -> None:
        layer.read(self._memory, scratch)

    def memory(self) -> torch.Tensor:
        return self._memory

    def release(self) -> None:
        pass


class DeviceLayerBuffer:
    """A buffer on a GPU, with a twin in pinned host memory from which it is filled. The copy runs
    on its own CUDA stream, during the computation."""

    def __init__(self, size: int, device: torch.device, stream: torch.cuda.Stream) -> None:
        self._host = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        self._memory = torch.empty(size, dtype=torch.uint8, device=device)
        self._device, self._stream = device, stream
        self._sent, self._free = torch.cuda.Event(), torch.cuda.Event()

    def fill(self, layer: Layer, scratch: torch.Tensor) -> None:
        self._sent.synchronize()  # the last copy reads the host buffer until then
        layer.read(self._host, scratch)
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(self._free)
            self._memory[: layer.size].copy_(self._host[: layer.size], non_blocking=True)
            self._sent.record(self._stream)

    def memory(self) -> torch.Tensor:
        torch.cuda.current_stream(self._device).wait_event(self._sent)
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
        self._scratch = torch.empty(scratch_bytes(layers), dtype=torch.uint8)
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


def rooms(size: int, device: str) -> list[LayerBuffer]:
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
    for left in Path(tempfile.gettempdir()).glob(f"{FOLDER}*"):
        process = left.name.removeprefix(FOLDER).partition("-")[0]
        if process.isdecimal() and not Path("/proc", process).exists():
            shutil.rmtree(left, ignore_errors=True)
    return tempfile.mkdtemp(prefix=f"{FOLDER}{os.getpid()}-")
