"""Layers whose weights are brought to the device in turn, and the buffers that they compute in.

How it works:

1. Two buffers on the device are each as large as the largest layer. A language half on a CPU has
   one, and reads each layer when a call reaches it.
2. While a layer computes, the other buffer is filled with the layer that is expected next: from the
   checkpoint's files by a thread, or from pinned host memory.
3. On a GPU the copy runs on its own CUDA stream, ordered by events: not before the last computation
   with the buffer, and before the next.
4. When a layer is loaded, its parameters are pointed at the buffer. Afterwards they are detached
   and the buffer is free again. A failed read empties the buffer, so that a retry reads it again.
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import nn

from artifacts.errors import CannotFit
from stages.models.halves.ranged_reads import read_into
from stages.models.hub.headers import TensorPlace
from stages.models.shards.layout import DTYPES
from stages.process.host_memory import cores

ALIGNED = {"cpu": 64, "cuda": 512}
"""Alignment in bytes of a device's own memory. Rounding of sums depends on it, and results must
equal those of a half that is loaded whole."""
READ_BYTES = 8 << 20
"""Bytes that a thread reads at once for a GPU."""
READERS = 8
"""Most threads that read a layer for a GPU, whose copies are faster than one thread reads."""
HINT = "Give it more memory, or choose a lower precision"


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerTensor:
    """A tensor of a layer."""

    owner: nn.Module
    name: str
    """Name in its owner."""
    shape: torch.Size
    dtype: torch.dtype
    """Type in which the layer computes."""
    at: int
    """Offset in bytes in the layer's buffer."""

    def view(self, buffer: torch.Tensor) -> torch.Tensor:
        """Return the tensor as a view of a layer's buffer of bytes."""
        size = self.shape.numel() * self.dtype.itemsize
        return buffer[self.at : self.at + size].view(self.dtype).reshape(self.shape)

    def put(self, tensor: torch.Tensor) -> None:
        """Make the owner compute with that tensor."""
        if self.name in self.owner._buffers:
            self.owner._buffers[self.name] = tensor
        else:
            self.owner._parameters[self.name] = nn.Parameter(tensor, requires_grad=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """A layer whose weights are brought to the device in turn."""

    module: nn.Module
    tensors: Sequence[LayerTensor]
    size: int
    """Bytes of the buffer that it needs."""

    def attach(self, buffer: torch.Tensor) -> None:
        """Make the layer compute with the content of the buffer."""
        for tensor in self.tensors:
            tensor.put(tensor.view(buffer))

    def detach(self) -> None:
        for tensor in self.tensors:
            tensor.put(torch.empty(tensor.shape, dtype=tensor.dtype, device="meta"))


@dataclass(frozen=True, kw_only=True, slots=True)
class FileTensor(LayerTensor):
    """A tensor that stays in a file of the checkpoint."""

    file: Path
    place: TensorPlace

    @property
    def stored(self) -> torch.dtype:
        return DTYPES[self.place.dtype]


@dataclass(frozen=True, kw_only=True, slots=True)
class FileLayer(Layer):
    """A layer whose weights stay in the checkpoint's files."""

    tensors: tuple[FileTensor, ...]

    def read(
        self, buffer: torch.Tensor, scratch: torch.Tensor, readers: Executor | None = None
    ) -> None:
        """Fill the buffer from the files, with several threads if there are `readers`. `scratch`
        holds the largest tensor whose stored type differs from the type in which it is computed."""
        parts: list[tuple[torch.Tensor, Path, int]] = []
        for tensor in self.tensors:
            first, end = tensor.place.start, tensor.place.end
            if tensor.stored == tensor.dtype:
                tensor_bytes = buffer[tensor.at : tensor.at + end - first]
                for at in range(0, end - first, READ_BYTES):
                    parts.append((tensor_bytes[at : at + READ_BYTES], tensor.file, first + at))
            else:
                raw = scratch[: end - first]
                read_into(raw, tensor.file, first)
                tensor.view(buffer).copy_(raw.view(tensor.stored).reshape(tensor.shape))
        if readers is None:
            for part in parts:
                read_into(*part)
            return
        running = [readers.submit(read_into, *part) for part in parts]
        wait(running)  # also of a failed read: the buffer may be filled again then
        for future in running:
            future.result()

    @property
    def largest_cast(self) -> int:
        """Bytes that `read` needs as scratch."""
        cast = (t.place for t in self.tensors if t.stored != t.dtype)
        return max((place.end - place.start for place in cast), default=0)


LayerT = TypeVar("LayerT", bound=Layer)
TakenT = TypeVar("TakenT", bound=Layer, contravariant=True)


class LayerBuffer(Protocol[TakenT]):
    """A buffer for one layer at a time."""

    def fill(self, layer: TakenT) -> None:
        """Bring the layer's weights into the buffer."""

    def memory(self) -> torch.Tensor:
        """Return the buffer's bytes; later computations may read them."""

    def release(self) -> None:
        """Mark the buffer as free: later computations do not read it."""


class HostLayerBuffer:
    """A buffer for one layer of a half that computes on the CPU. One thread fills it."""

    def __init__(self, size: int, scratch: torch.Tensor) -> None:
        self._memory = torch.empty(size, dtype=torch.uint8)
        self._scratch = scratch

    def fill(self, layer: FileLayer) -> None:
        layer.read(self._memory, self._scratch)

    def memory(self) -> torch.Tensor:
        return self._memory

    def release(self) -> None:
        pass


class DeviceLayerBuffer:
    """A buffer on a GPU. The copy runs on its own CUDA stream, during the computation."""

    def __init__(self, size: int, device: torch.device, stream: torch.cuda.Stream) -> None:
        self._memory = torch.empty(size, dtype=torch.uint8, device=device)
        self._device, self._stream = device, stream
        self._free, self._sent = torch.cuda.Event(), torch.cuda.Event()
        # A computation that has not ended may still use the memory, and a copy when it is freed.
        stream.wait_stream(torch.cuda.current_stream(device))
        self._memory.record_stream(stream)

    def memory(self) -> torch.Tensor:
        torch.cuda.current_stream(self._device).wait_event(self._sent)
        return self._memory

    def release(self) -> None:
        self._free.record(torch.cuda.current_stream(self._device))

    def _send(self, pieces: Iterable[torch.Tensor]) -> None:
        """Start to copy pieces of host memory, one behind the other."""
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(self._free)
            at = 0
            for piece in pieces:
                self._memory[at : at + len(piece)].copy_(piece, non_blocking=True)
                at += len(piece)
            self._sent.record(self._stream)


class StagedLayerBuffer(DeviceLayerBuffer):
    """A buffer on a GPU, with a twin in pinned host memory into which files are read."""

    def __init__(
        self,
        size: int,
        device: torch.device,
        stream: torch.cuda.Stream,
        scratch: torch.Tensor,
        readers: Executor,
    ) -> None:
        super().__init__(size, device, stream)
        self._twin = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        self._scratch, self._readers = scratch, readers

    def fill(self, layer: FileLayer) -> None:
        self._sent.synchronize()
        layer.read(self._twin, self._scratch, self._readers)
        self._send([self._twin[: layer.size]])


EMPTY = -1


class LayerProvider:
    """Provides layers by number. Those that are all in memory need nothing."""

    def prefetch(self, layer: int) -> None:
        """Start to fetch the layer that is expected next, during the computation."""

    def load(self, layer: int) -> None:
        """Load the layer. Only one layer is loaded at a time."""

    def release(self, layer: int) -> None:
        """Release the layer, after all waiting calls have passed it."""


class LayerBuffers(LayerProvider, Generic[LayerT]):
    """The layers of one half and one or two buffers; loads them for whoever computes."""

    def __init__(
        self, layers: Sequence[LayerT], buffers: Sequence[LayerBuffer[LayerT]], filler: Executor
    ) -> None:
        """`filler` fills the buffers, one after the other."""
        self._layers = layers
        self.fetched = 0
        """Number of layers copied or read so far."""
        self._buffers = buffers
        self._holds = [EMPTY for _ in buffers]
        """The layer that each buffer holds or will hold."""
        self._filled: dict[int, Future[None]] = {}
        self._open = EMPTY
        """The buffer in use by the current computation."""
        self._filler = filler

    def prefetch(self, layer: int) -> None:
        others = [at for at in range(len(self._buffers)) if at != self._open]
        if layer not in self._holds and others:
            at = min(others, key=lambda other: self._holds[other] != EMPTY)
            self._holds[at] = layer
            self._filled[at] = self._filler.submit(self._fill, at, layer)

    def load(self, layer: int) -> None:
        self.prefetch(layer)
        at = self._holds.index(layer)
        try:
            self._filled[at].result()
        except BaseException:  # a retry reads the layer again
            self._holds[at] = EMPTY
            raise
        self._layers[layer].attach(self._buffers[at].memory())
        self._open = at

    def release(self, layer: int) -> None:
        self._layers[layer].detach()
        self._buffers[self._open].release()
        self._open = EMPTY

    def _fill(self, at: int, layer: int) -> None:
        self._buffers[at].fill(self._layers[layer])
        self.fetched += 1


def buffered_files(
    layers: Sequence[FileLayer], device: str, buffers: int = 2
) -> LayerBuffers[FileLayer]:
    """Return layers that are read from the checkpoint's files, on a CPU into one or two buffers."""
    size = max(layer.size for layer in layers)
    scratch = torch.empty(max(layer.largest_cast for layer in layers), dtype=torch.uint8)
    filler = ThreadPoolExecutor(max_workers=1, thread_name_prefix="layers")
    if device == "cpu":
        hosts = [HostLayerBuffer(size, scratch) for _ in range(buffers)]
        return LayerBuffers(layers, hosts, filler)
    readers = ThreadPoolExecutor(min(READERS, cores()), thread_name_prefix="layer-reads")
    place, stream = torch.device(device), torch.cuda.Stream(device)
    staged = [StagedLayerBuffer(size, place, stream, scratch, readers) for _ in range(2)]
    return LayerBuffers(layers, staged, filler)


class LayersInTurn:
    """Loads each layer when a call reaches it, and with two buffers the next one during its
    computation."""

    def __init__(self, layers: Sequence[Layer], provider: LayerProvider) -> None:
        self._provider = provider
        self._after = {at: (at + 1) % len(layers) for at in range(len(layers))}
        """Layer → the layer that was reached after it, or is expected."""
        self._last = len(layers) - 1
        self._inside: int | None = None
        """The layer that is loaded and computes."""
        for at, layer in enumerate(layers):
            layer.module.register_forward_pre_hook(partial(self._enter, at))
            # Also behind a layer that failed, such as for want of memory; not after an interrupt.
            layer.module.register_forward_hook(partial(self._leave, at), always_call=True)

    def _enter(self, at: int, module: nn.Module, inputs: Any) -> None:
        if self._inside is not None:  # whose buffer would be overwritten
            raise CannotFit(
                f"a layer of this model calls another layer, a {type(module).__name__}", hint=HINT
            )
        self._after[self._last], self._last = at, at
        self._provider.load(at)
        self._inside = at
        self._provider.prefetch(self._after[at])

    def _leave(self, at: int, module: nn.Module, inputs: Any, outputs: Any) -> None:
        if self._inside == at:  # otherwise it could not be loaded
            self._inside = None
            self._provider.release(at)
