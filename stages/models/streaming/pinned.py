"""Loads a half whose layers wait in pinned host memory, for a GPU too small for all of them.

Each forward pass, that is every token, needs all layers. Pinned memory is copied at the full speed
of the bus, and while the layer before computes. From other memory copies took eight times as long
(H200), and computing waited for each.

How it works:

1. The placement puts the layers into host memory and everything else on the device. Accelerate's
   hooks, which would copy a layer when it is reached, are left out.
2. The parameters of each layer are moved into pinned memory, in pieces, because torch rounds each
   pinned allocation up to a power of two. Buffers are small and stay on the device.
3. A hook before each layer waits for its copy and starts that of the layer that followed the last
   time. A hook behind it frees the buffer.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from artifacts.errors import CannotFit
from stages.models.halves.generate import dispatching, waiting
from stages.models.halves.ranged_reads import NOTE
from stages.models.protocols import Half
from stages.models.streaming.layers import (
    ALIGNED,
    HINT,
    DeviceLayerBuffer,
    Layer,
    LayerBuffers,
    LayersInTurn,
    LayerTensor,
)
from stages.process.exit_diagnosis import first_line

SMALLEST_PIECE = 1 << 20
"""Bytes of the smallest piece of a layer, which may be partly empty."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PinnedLayer(Layer):
    """A layer whose weights wait in pinned host memory."""

    pieces: tuple[torch.Tensor, ...]
    """The bytes of its buffer."""


class PinnedLayerBuffer(DeviceLayerBuffer):
    """A buffer on a GPU for layers that wait in pinned host memory."""

    def fill(self, layer: PinnedLayer) -> None:
        self._send(layer.pieces)


class _AtOnce(Executor):
    """Does at once what it is given, which only starts a copy: another thread would have to wait
    for the interpreter."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **options: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **options))
        except Exception as error:
            future.set_exception(error)
        return future


def buffered_pinned(layers: Sequence[PinnedLayer], device: str) -> LayerBuffers[PinnedLayer]:
    """Return layers that wait in pinned host memory."""
    size = max(layer.size for layer in layers)
    place, stream = torch.device(device), torch.cuda.Stream(device)
    buffers = [PinnedLayerBuffer(size, place, stream) for _ in range(2)]
    return LayerBuffers(layers, buffers, _AtOnce())


def load_pinned(
    load: Callable[..., Half], place: Callable[[str], dict[str, str]], device: str
) -> Half:
    """Load a half with its layers in pinned host memory; `load` and `place` are `load_half` and
    `placement` with its arguments. Raises CannotFit for a model without layers, or whose layers
    share modules."""
    places = place("cpu")
    with dispatching(lambda model, **_: None):
        half = load(device_map=places)
    half.hf_device_map = places
    pinning = Pinning()
    layers = [pinning.layer(half.get_submodule(layer), device) for layer in waiting(places)]
    LayersInTurn(layers, buffered_pinned(layers, device))
    if pinning.refused:
        half.__dict__[NOTE] = pinning.refused
    return half


class Pinning:
    """Moves layers into pinned memory, as long as there is some."""

    def __init__(self) -> None:
        self.refused = ""
        """Why some layers are in plain memory, whose copies are slower."""
        self._layer_bytes = torch.empty(0, dtype=torch.uint8)

    def layer(self, module: nn.Module, device: str) -> PinnedLayer:
        """Move a layer's parameters away from the module, and its buffers to the device."""
        aligned, size = ALIGNED[device.partition(":")[0]], 0
        tensors: list[LayerTensor] = []
        weights: list[torch.Tensor] = []
        for owner in module.modules():
            for name, buffer in owner._buffers.items():
                owner._buffers[name] = None if buffer is None else buffer.to(device)
            for name, weight in owner._parameters.items():
                if weight is None:
                    continue
                if weight.is_meta:
                    raise CannotFit(
                        f"two layers of this model share a {type(owner).__name__}", hint=HINT
                    )
                at = -(-size // aligned) * aligned
                shape, dtype = weight.shape, weight.dtype
                tensors.append(LayerTensor(owner=owner, name=name, shape=shape, dtype=dtype, at=at))
                weights.append(weight.data)
                size = at + weight.nbytes
        if len(self._layer_bytes) < size:
            self._layer_bytes = torch.empty(size, dtype=torch.uint8)
        for tensor, data in zip(tensors, weights, strict=True):
            tensor.view(self._layer_bytes).copy_(data)
        pieces = tuple(self._pieces(self._layer_bytes[:size]))
        layer = PinnedLayer(module=module, tensors=tensors, size=size, pieces=pieces)
        layer.detach()
        return layer

    def _pieces(self, layer_bytes: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield copies of parts of the bytes."""
        at = 0
        for size in piece_sizes(len(layer_bytes)):
            part = layer_bytes[at : at + size]
            piece = self._pinned(size)[: len(part)]
            piece.copy_(part)
            yield piece
            at += size

    def _pinned(self, size: int) -> torch.Tensor:
        if not self.refused:
            try:
                return torch.empty(size, dtype=torch.uint8, pin_memory=True)
            except RuntimeError as error:
                self.refused = f"not all layers can be pinned: {first_line(error)}"
        return torch.empty(size, dtype=torch.uint8)


def piece_sizes(size: int) -> Iterator[int]:
    """Yield powers of two that hold `size` bytes together, the largest first."""
    remaining = -(-size // SMALLEST_PIECE) * SMALLEST_PIECE
    while remaining:
        piece = 1 << (remaining.bit_length() - 1)
        yield piece
        remaining -= piece
