"""Places a half's layers outside the device when the half itself does not fit, and on a CPU brings
them into memory one at a time.

On a CPU the layers stay in the checkpoint's files, and accelerate's hooks read each when it is
reached. Every forward pass, that is every token, reads all layers. `streaming` does it on a GPU.
"""

import contextlib
import functools
import itertools
import os
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from artifacts.errors import CannotFit
from artifacts.schema import Part
from stages.models.halves.boundary import absent_paths
from stages.models.halves.load import load_half


def placement(
    skeleton: Any, keep: Part, pieces: tuple[str, ...], device: str, away: str
) -> dict[str, str]:
    """Return path → place of everything that the part keeps: layers away, the rest on the device.
    Raises CannotFit for a part without layers."""
    absent = set(absent_paths(skeleton, keep, pieces))
    found: dict[str, str] = {}
    _place(skeleton, "", absent, device, away, found)
    for first in _first_weights(skeleton, absent):
        found.update({p: device for p in found if first.startswith(f"{p}.")})
    if away not in found.values():
        raise CannotFit(
            f"{type(skeleton).__name__} has no layers that could be loaded one by one",
            hint="Give it more memory, or choose a lower precision",
        )
    return found


def _first_weights(skeleton: Any, absent: Collection[str]) -> Iterator[str]:
    """Yield, for each model inside a model, the weight that determines its `device` property."""
    for path, module in skeleton.named_modules():
        if hasattr(type(module), "device"):
            names = (f"{path}.{name}".lstrip(".") for name, _ in module.named_parameters())
            here = (n for n in names if not any(f"{n}.".startswith(f"{p}.") for p in absent))
            yield from itertools.islice(here, 1)


def offloaded_bytes(half: Any) -> int:
    """Return the bytes that each forward pass fetches; 0 if all weights are on the device. Each
    token needs at least one pass."""
    layers = [half.get_submodule(path) for path in waiting(getattr(half, "hf_device_map", {}))]
    return sum(weight.nbytes for layer in layers for weight in layer.parameters())


def waiting(places: Mapping[str, Any]) -> list[str]:
    """Return the paths of the layers that are not on the device; on a CPU, `cpu` is the device."""
    away = "disk" if "disk" in places.values() else "cpu"
    return [path for path, place in places.items() if place == away and len({*places.values()}) > 1]


def load_in_layers(
    path: Path,
    skeleton: Any,
    keep: Part,
    pieces: tuple[str, ...],
    device: str,
    options: dict[str, Any],
) -> Any:
    """Load what `load_half` gives with these options, with the layers in their files. Raises
    CannotFit if that is impossible for the model."""
    places = placement(skeleton, keep, pieces, device, away="disk")
    with _whole_layers(skeleton, places) as folder:
        given = {**options, "device_map": places, "offload_folder": folder}
        half = load_half(path, keep, pieces=pieces, **given)
        if any(Path(folder).iterdir()):
            raise CannotFit(
                f"the weights of {type(half).__name__} are rearranged on loading and cannot "
                "stay in their files",
                hint="Give it more memory, or choose a lower precision",
            )
    return half


@contextlib.contextmanager
def _whole_layers(skeleton: Any, places: dict[str, str]) -> Iterator[str]:
    """Yield a folder for the loader, and make it fetch whole layers inside the block. By default it
    fetches each linear layer alone, but some layers read all of their weights at once."""
    from accelerate import dispatch_model
    from accelerate.utils import offload
    from safetensors import safe_open

    names = sorted({type(skeleton.get_submodule(path)).__name__ for path in waiting(places)})
    with (
        tempfile.TemporaryDirectory(prefix="penstock-offload-") as folder,
        warnings.catch_warnings(),
        dispatching(functools.partial(dispatch_model, preload_module_classes=names)),
    ):
        # Single weights have places too, which accelerate looks for among modules.
        warnings.filterwarnings("ignore", message="The following device_map keys")
        # A mapped file counts against a memory limit in full, and each tensor would map it again.
        offload.safe_open = functools.partial(safe_open, backend="pread")
        yield folder


@contextlib.contextmanager
def dispatching(receive: Callable[..., Any]) -> Iterator[None]:
    """Make the loader pass a model whose layers are away to `receive` inside the block.

    The call is that of accelerate's `dispatch_model`, with `offload_index`: name of a weight → its
    `safetensors_file` and its `weight_name` there."""
    from transformers.integrations import accelerate as integration

    library: Any = integration
    stock = library.dispatch_model

    @functools.wraps(stock)
    def given(model: Any, *, offload_index: Any, **options: Any) -> Any:
        for entry in (offload_index or {}).values():
            # The loader may have received links, which are deleted when it returns.
            entry["safetensors_file"] = os.path.realpath(entry["safetensors_file"])
        return receive(model, offload_index=offload_index, **options)

    library.dispatch_model = given
    try:
        yield
    finally:
        library.dispatch_model = stock


def _place(
    module: nn.Module, path: str, absent: set[str], device: str, away: str, found: dict[str, str]
) -> None:
    """Fill `found` for one module: as a whole, or part by part if some parts are elsewhere."""
    if path in absent:
        return
    whole = (
        path
        and not any(map(_layers, module.modules()))
        and not any(p.startswith(f"{path}.") for p in absent)
    )
    if whole:
        found[path] = device
        return
    prefix, layers = f"{path}." if path else "", _layers(module)
    for name, child in module.named_children():
        if name in layers:
            found[prefix + name] = away
        else:
            _place(child, prefix + name, absent, device, away, found)
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    found.update({prefix + name: device for name, _ in own if prefix + name not in absent})


def outermost_layers(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the layers that are not inside another layer."""
    called = _layers(model)
    for name, child in model.named_children():
        if name in called:
            yield child
        else:
            yield from outermost_layers(child)


def _layers(module: nn.Module) -> set[str]:
    """Return the names of a module's children that are layers: callable items of a ModuleList, and
    items of a Sequential that have children themselves."""
    parts = dict(module.named_children())
    if len(parts) < 2 or not isinstance(module, nn.ModuleList | nn.Sequential):
        return set()
    if isinstance(module, nn.ModuleList):
        return {name for name, part in parts.items() if type(part).forward != nn.Module.forward}
    return {name for name, part in parts.items() if any(True for _ in part.children())}
