"""Keeps room for two layers: one is computed with while the other is filled. Knows no order."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import torch

from stages.models.streaming.layers import Layer, scratch_bytes

EMPTY = -1


class Room(Protocol):
    """Memory for one layer."""

    def fill(self, layer: Layer, scratch: torch.Tensor) -> None:
        """Read the layer into the room; called by the thread that reads."""

    def memory(self) -> torch.Tensor:
        """Return the room's bytes, once all that is computed from now on may read them."""

    def release(self) -> None:
        """Note that nothing that is computed from now on reads them."""


class HostRoom:
    """A room of a half that computes on the CPU."""

    def __init__(self, size: int) -> None:
        self._memory = torch.empty(size, dtype=torch.uint8)

    def fill(self, layer: Layer, scratch: torch.Tensor) -> None:
        layer.read(self._memory, scratch)

    def memory(self) -> torch.Tensor:
        return self._memory

    def release(self) -> None:
        pass


class DeviceRoom:
    """A room on a GPU, with one in pinned host memory to fill it from. It is filled on a stream of
    its own, beside what is computed."""

    def __init__(self, size: int, device: torch.device, stream: torch.cuda.Stream) -> None:
        self._host = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        self._memory = torch.empty(size, dtype=torch.uint8, device=device)
        self._device, self._stream = device, stream
        self._sent, self._free = torch.cuda.Event(), torch.cuda.Event()

    def fill(self, layer: Layer, scratch: torch.Tensor) -> None:
        self._sent.synchronize()  # the host's room is read until then
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


class Slabs:
    """The layers of one half: the keeper of its turnstile."""

    def __init__(self, layers: Sequence[Layer], device: str) -> None:
        self._layers = layers
        self.fetched = 0
        """Layers that were read so far."""
        size = max(layer.size for layer in layers)
        self._scratch = torch.empty(scratch_bytes(layers), dtype=torch.uint8)
        self._rooms = rooms(size, device)
        self._holds = [EMPTY for _ in self._rooms]
        """Layer that is in each room, or will be."""
        self._filled: dict[int, Future[None]] = {}
        self._open = EMPTY
        """The room that is computed with."""
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="layers")

    def expect(self, layer: int) -> None:
        if layer not in self._holds:
            others = [room for room in range(len(self._rooms)) if room != self._open]
            room = min(others, key=lambda other: self._holds[other] != EMPTY)
            self._holds[room] = layer
            self._filled[room] = self._reader.submit(self._fill, room, layer)

    def bring(self, layer: int) -> None:
        self.expect(layer)
        room = self._holds.index(layer)
        try:
            self._filled[room].result()
        except BaseException:  # whoever wants it again has it read again
            self._holds[room] = EMPTY
            raise
        self._layers[layer].attach(self._rooms[room].memory())
        self._open = room

    def take_away(self, layer: int) -> None:
        self._layers[layer].detach()
        self._rooms[self._open].release()
        self._open = EMPTY

    def _fill(self, room: int, layer: int) -> None:
        self._rooms[room].fill(self._layers[layer], self._scratch)
        self.fetched += 1


def rooms(size: int, device: str) -> list[Room]:
    """Make two rooms for layers of so many bytes."""
    if device == "cpu":
        return [HostRoom(size) for _ in range(2)]
    place, stream = torch.device(device), torch.cuda.Stream(device)
    return [DeviceRoom(size, place, stream) for _ in range(2)]
