"""Loads a half without its layers, which come from the checkpoint's files when they are wanted.
Knows no family."""

import contextlib
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from artifacts.errors import CannotFit
from artifacts.schema import Part
from stages.models.halves.load import load_half
from stages.models.halves.offload import dispatching, placement, waiting
from stages.models.streaming.layers import Index, NotInFiles, layers_of
from stages.models.streaming.slabs import Slabs
from stages.models.streaming.turnstile import Turnstile

Made = TypeVar("Made")
ATTRIBUTE = "penstock_layers"
FOLDER = "penstock-layers-"


class StreamedLayers:
    """The layers of a half that is held without them, and how calls cross them."""

    def __init__(self, half: Any, paths: Sequence[str], index: Index, device: str) -> None:
        layers = layers_of(half, paths, index, device)
        self.paths = tuple(paths)
        """Paths of the layers, by their numbers."""
        self.count = len(layers)
        self.bytes = sum(layer.size for layer in layers)
        """Bytes of all of them together."""
        self.slabs = Slabs(layers, device)
        self.turnstile = Turnstile([layer.module for layer in layers], self.slabs)

    def cross(self, calls: Sequence[Callable[[], Made]]) -> list[Made]:
        """Return the result of each call; each layer comes once for all of them."""
        return self.turnstile.cross(calls)


def streamed_layers(half: Any) -> StreamedLayers | None:
    """Return the layers of a half that was loaded by `load_streamed`; None for any other half."""
    found = half.__dict__.get(ATTRIBUTE)
    return found if isinstance(found, StreamedLayers) else None


def cross(half: Any, calls: Sequence[Callable[[], Made]]) -> list[Made]:
    """Return the result of each call, which runs the half. The calls run together where its layers
    are streamed, else one after the other."""
    layers = streamed_layers(half)
    return [call() for call in calls] if layers is None else layers.cross(calls)


def load_streamed(
    path: Path,
    skeleton: Any,
    keep: Part,
    pieces: tuple[str, ...],
    device: str,
    options: dict[str, Any],
) -> Any:
    """Load what `load_half` gives with these options, but for the weights of its layers. Raises
    CannotFit for a model whose layers cannot come one by one."""
    places = placement(skeleton, keep, pieces, device, away="disk")
    index: dict[str, Mapping[str, str]] = {}

    def receive(model: Any, *, offload_index: Index, **_: Any) -> None:
        index.update(offload_index)

    with contextlib.ExitStack() as undo:
        # Weights that are not stored as they are computed with are written there once.
        folder = new_folder()
        undo.callback(shutil.rmtree, folder, ignore_errors=True)
        # Without the hooks that would fetch a layer at each call.
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
    """Make a temporary folder for weights; those of processes that were killed are deleted."""
    for left in Path(tempfile.gettempdir()).glob(f"{FOLDER}*"):
        process = left.name.removeprefix(FOLDER).partition("-")[0]
        if process.isdecimal() and not Path("/proc", process).exists():
            shutil.rmtree(left, ignore_errors=True)
    return tempfile.mkdtemp(prefix=f"{FOLDER}{os.getpid()}-")
