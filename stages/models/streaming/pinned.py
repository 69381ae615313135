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

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from artifacts.errors import CannotFit
from artifacts.schema import Part
from stages.models.halves.load import load_half
from stages.models.halves.offload import dispatching, placement, waiting
from stages.models.halves.ranged_reads import NOTE
from stages.models.streaming.layers import (
    ALIGNED,
    LayerDoubleBuffer,
    LayerTensor,
    PinnedLayer,
    buffered_pinned,
)
from stages.process.exit_diagnosis import first_line

SMALLEST_PIECE = 1 << 20
"""Bytes of the smallest piece of a layer, which may be partly empty."""
HINT = "Give it more memory, or choose a lower precision"


def load_pinned(
    path: Path,
    skeleton: Any,
    keep: Part,
    extra_modules: tuple[str, ...],
    device: str,
    options: dict[str, Any],
) -> Any:
    """Load what `load_half` gives with these options, with the layers in pinned host memory. Raises
    CannotFit for a model without layers, or whose layers share modules."""
    places = placement(skeleton, keep, extra_modules, device, away="cpu")
    with dispatching(lambda model, **_: None):
        half = load_half(
            path, keep, extra_modules=extra_modules, **{**options, "device_map": places}
        )
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
        self._whole = torch.empty(0, dtype=torch.uint8)

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
        if len(self._whole) < size:
            self._whole = torch.empty(size, dtype=torch.uint8)
        for tensor, value in zip(tensors, weights, strict=True):
            tensor.view(self._whole).copy_(value)
        pieces = tuple(self._pieces(self._whole[:size]))
        layer = PinnedLayer(module=module, tensors=tensors, size=size, pieces=pieces)
        layer.detach()
        return layer

    def _pieces(self, whole: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield copies of parts of the bytes."""
        at = 0
        for size in piece_sizes(len(whole)):
            part = whole[at : at + size]
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
    left = -(-size // SMALLEST_PIECE) * SMALLEST_PIECE
    while left:
        piece = 1 << (left.bit_length() - 1)
        yield piece
        left -= piece


class LayersInTurn:
    """Loads each layer when a call reaches it, and the next one during its computation."""

    def __init__(self, layers: Sequence[PinnedLayer], buffer: LayerDoubleBuffer) -> None:
        self._buffer = buffer
        self._after = {at: (at + 1) % len(layers) for at in range(len(layers))}
        """Layer → the layer that was reached after it, or is expected."""
        self._last = len(layers) - 1
        self._inside: int | None = None
        """The layer that is loaded and computes."""
        for at, layer in enumerate(layers):
            layer.module.register_forward_pre_hook(partial(self._enter, at))
            # Also behind a layer that failed, such as for want of memory; not after an interrupt.
            layer.module.register_forward_hook(partial(self._leave, at), always_call=True)

    def _enter(self, at: int, module: nn.Module, given: Any) -> None:
        if self._inside is not None:  # whose buffer would be overwritten
            raise CannotFit(
                f"a layer of this model calls another layer, a {type(module).__name__}", hint=HINT
            )
        self._after[self._last], self._last = at, at
        self._buffer.load(at)
        self._inside = at
        self._buffer.prefetch(self._after[at])

    def _leave(self, at: int, module: nn.Module, given: Any, made: Any) -> None:
        if self._inside == at:  # otherwise it could not be loaded
            self._inside = None
            self._buffer.release(at)
