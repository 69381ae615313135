"""Loads a half without its layers, and streams them from the checkpoint's files.

Each layer is in memory only while calls pass it. Many calls of a vision half cross the layers
together. A call of a language half crosses them alone, for each token (`LayersInTurn`).

How a half is loaded:

1. The placement puts the layers on disk and everything else on the device.
2. `load_half` loads the half with this device map. Accelerate's hooks, which would fetch a layer at
   each call, are left out; only the index of the weights is kept.
3. Weights that the files do not hold as they are computed with are written once to a temporary
   folder. A weight that cannot be read by itself raises CannotFit.
4. Calls that cross the layers together do so in lockstep: it requests each layer by number and
   announces the one that it expects next, which a thread reads meanwhile (`layers.py`).
5. The temporary folder is deleted with the layers. Each load also deletes the folders of killed
   processes.

How the calls cross the layers:

1. Each call runs the model's own forward, unchanged, in a greenlet. A greenlet is a function that
   can pause inside nested calls and resume later in the same thread.
2. `run_calls` puts a door before each layer, by replacing `forward` on the layer object. At a door
   a call pauses and gives the number of the layer that it waits for.
3. The loop takes the lowest number that any call waits for and has the provider load that layer.
4. It announces the layer to expect next, which is the one that followed the last time.
5. All calls that wait at this door run one after the other, each up to its next door. So a layer is
   fetched once for all calls, and each call computes what it would compute alone.
6. At the end, or when one call raises, the doors are removed and unfinished calls are ended.
"""

import contextlib
import contextvars
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import greenlet
import torch
from torch import nn

from artifacts.disk.files import own_folder
from artifacts.errors import CannotFit
from stages.models.halves.generate import dispatching, waiting
from stages.models.hub.headers import TensorPlace, read_places
from stages.models.protocols import Half
from stages.models.shards.layout import DTYPES
from stages.models.streaming.layers import (
    ALIGNED,
    FileLayer,
    FileTensor,
    LayerProvider,
    LayersInTurn,
    buffered_files,
)

Made = TypeVar("Made")
NOWHERE = -1


class LayerLockstep:
    """The doors of a model's layers."""

    def __init__(self, layers: Sequence[nn.Module], provider: LayerProvider) -> None:
        self._layers = layers
        self._provider = provider
        self._after = {at: at + 1 for at in range(len(layers) - 1)} | {len(layers) - 1: 0}
        """Layer → the layer that was requested after it, or is expected."""
        self._last = len(layers) - 1
        """The last layer that calls passed."""

    def run_calls(
        self,
        calls: Sequence[Callable[[], Made]],
        passed: Callable[[int], None] = lambda layer: None,
    ) -> list[Made]:
        """Return the result of each call, in order. An error in one call is raised and ends the
        others.

        `passed` is called with the number of each layer after all waiting calls have passed it,
        while it is still loaded. An error that it raises ends the calls, too."""
        crossing = _Crossing(calls)
        # Inference mode is a setting of the thread, which all calls share.
        with torch.inference_mode(), self._doors(crossing):
            crossing.set_out()
            self._after[self._last] = min(crossing.waiting.values(), default=self._last)
            while crossing.waiting:
                # Calls may take different paths: those ahead wait for the others.
                at = min(crossing.waiting.values())
                self._provider.load(at)
                try:
                    self._provider.prefetch(self._after[at])
                    self._after[at] = crossing.let_through(at, self._after[at])
                    passed(at)
                finally:
                    self._provider.release(at)
                self._last = at
        return crossing.made

    @contextlib.contextmanager
    def _doors(self, crossing: "_Crossing[Any]") -> Iterator[None]:
        """Put a door before each layer. At the end of the block, unfinished calls are ended and the
        doors are removed."""
        own = [layer.__dict__.get("forward") for layer in self._layers]
        for at, layer in enumerate(self._layers):
            layer.__dict__["forward"] = partial(crossing.pass_through, at, layer.forward)
        try:
            yield
        finally:
            crossing.leave()
            for layer, forward in zip(self._layers, own, strict=True):
                del layer.__dict__["forward"]
                if forward is not None:
                    layer.__dict__["forward"] = forward


class _Crossing(Generic[Made]):
    """Calls in progress, each paused at a door or finished."""

    def __init__(self, calls: Sequence[Callable[[], Made]]) -> None:
        self.made: list[Made] = [None] * len(calls)  # type: ignore[list-item]
        self.waiting: dict[int, int] = {}
        """Call → the layer before which it waits."""
        self._open = NOWHERE
        self._walkers = [greenlet.greenlet(partial(self._walk, *one)) for one in enumerate(calls)]
        for walker in self._walkers:  # each call gets a copy of the caller's context variables
            walker.gr_context = contextvars.copy_context()

    def set_out(self) -> None:
        for call in range(len(self._walkers)):
            self._go_on(call)

    def let_through(self, layer: int, after: int) -> int:
        """Run all calls that wait before a layer up to their next door. Return the layer that the
        last of them requests, or `after` if they are done."""
        self._open = layer
        for call in [call for call, at in self.waiting.items() if at == layer]:
            after = self._go_on(call, after)
        self._open = NOWHERE
        return after

    def pass_through(self, layer: int, forward: Callable[..., Any], *args: Any, **kw: Any) -> Any:
        """Replace a layer's forward: wait until the door opens, then compute."""
        if self._open != layer:
            greenlet.getcurrent().parent.switch(layer)
        return forward(*args, **kw)

    def leave(self) -> None:
        """End the unfinished calls by raising in each."""
        self._open = NOWHERE
        for walker in self._walkers:
            if walker:
                walker.throw()

    def _walk(self, call: int, compute: Callable[[], Made]) -> None:
        self.made[call] = compute()

    def _go_on(self, call: int, after: int = NOWHERE) -> int:
        self.waiting.pop(call, None)
        walker = self._walkers[call]
        layer = walker.switch()
        if walker.dead:
            return after
        self.waiting[call] = int(layer)
        return self.waiting[call]


Index = Mapping[str, Mapping[str, str]]
"""Name of a weight → its `safetensors_file`, and its `weight_name` there."""


class NotInFiles(Exception):
    """Raised for a weight that no file holds in the form in which it is computed."""


def layers_of(half: Half, paths: Sequence[str], index: Index, device: str) -> list[FileLayer]:
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
    tensors: list[FileTensor] = []
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
        tensors.append(
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
    return FileLayer(module=module, tensors=tuple(tensors), size=size)


def _empty(module: nn.Module, path: str) -> Iterator[tuple[nn.Module, str, str, torch.Tensor]]:
    """Yield owner, name, the owner's path and the tensor, for all tensors of a layer without
    data."""
    for inner, owner in module.named_modules():
        prefix = ".".join(filter(None, (path, inner))) + "."
        for name, tensor in (*owner._parameters.items(), *owner._buffers.items()):
            if tensor is not None and tensor.is_meta:
                yield owner, name, prefix, tensor


ATTRIBUTE = "penstock_layers"
FOLDER = "penstock-layers-"


class StreamedLayers:
    """The streamed layers of a half, and how calls cross them."""

    def __init__(
        self, half: Half, paths: Sequence[str], index: Index, device: str, buffers: int
    ) -> None:
        self.layers = layers_of(half, paths, index, device)
        self.paths = tuple(paths)
        """Module paths of the layers, in the order of their numbers."""
        self.buffers = buffered_files(self.layers, device, buffers)
        self.lockstep = LayerLockstep([layer.module for layer in self.layers], self.buffers)


def streamed_layers(half: Half | nn.Module) -> StreamedLayers | None:
    """Return the layers of a half that was loaded by `load_streamed`; None for any other half."""
    layers = half.__dict__.get(ATTRIBUTE)
    return layers if isinstance(layers, StreamedLayers) else None


def run_calls(half: Half, calls: Sequence[Callable[[], Made]]) -> list[Made]:
    """Return the result of each call of the half. Calls run together if its layers are streamed,
    else one after the other."""
    layers = streamed_layers(half)
    return [call() for call in calls] if layers is None else layers.lockstep.run_calls(calls)


def load_streamed(
    load: Callable[..., Half], place: Callable[[str], dict[str, str]], device: str, buffers: int = 2
) -> Half:
    """Load a half without the weights of its layers; `load` and `place` are `load_half` and
    `placement` with its arguments. On a CPU the layers are read into one or two `buffers`. Raises
    CannotFit for a model whose layers cannot be fetched one by one."""
    places = place("disk")
    index: dict[str, Mapping[str, str]] = {}

    def receive(model: Half, *, offload_index: Index, **_: Any) -> None:
        index.update(offload_index)

    with contextlib.ExitStack() as undo:
        # Weights whose stored form differs from the computed one are written there once.
        folder = str(undo.enter_context(own_folder(Path(tempfile.gettempdir()), FOLDER)))
        # Leave out the hooks that would fetch a layer at each call.
        with dispatching(receive):
            half = load(device_map=places, offload_folder=folder)
        try:
            layers = StreamedLayers(half, waiting(places), index, device, buffers)
        except NotInFiles as error:
            raise CannotFit(
                f"{error} of {type(half).__name__} cannot come from the model's files by itself",
                hint="Give it more memory, or choose a lower precision",
            ) from error
        weakref.finalize(layers, undo.pop_all().close)
    half.hf_device_map = places
    half.__dict__[ATTRIBUTE] = layers
    return half


def load_in_turn(
    load: Callable[..., Half], place: Callable[[str], dict[str, str]], device: str
) -> Half:
    """Load a half as `load_streamed` does, each of whose calls crosses the layers alone."""
    # A second buffer would take the memory of a layer, which is what a half read like this lacks.
    half = load_streamed(load, place, device, buffers=1)
    layers = half.__dict__[ATTRIBUTE]
    LayersInTurn(layers.layers, layers.buffers)
    return half
