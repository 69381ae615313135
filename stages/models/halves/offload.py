"""Lets a half's layers come to the device one at a time, by accelerate's hooks, where not even the
half fits; knows no family.

On a GPU the layers wait in host memory; on a CPU they stay in the checkpoint's files, of which only
those are ever in memory that compute. Every pass through the half, which is one for each token,
fetches all of them.
"""

import contextlib
import functools
import tempfile
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from artifacts.errors import UsageError
from stages.models.halves.boundary import Part, absent_paths

AWAY = ("cpu", "disk")
"""Where accelerate is told to keep what waits."""


def placement(skeleton: Any, keep: Part, pieces: tuple[str, ...], device: str) -> dict[str, str]:
    """Path → place of everything that the part keeps: layers away, all else on the device. Raises
    UsageError for a part without layers."""
    absent = set(absent_paths(skeleton, keep, pieces))
    away = "disk" if device == "cpu" else "cpu"
    found: dict[str, str] = {}
    _place(skeleton, "", absent, device, away, found)
    if away not in found.values():
        raise UsageError(
            f"{type(skeleton).__name__} has no layers that could come one by one",
            hint="Give it more memory, or choose a lower precision",
        )
    return found


def offloaded_bytes(half: Any) -> int:
    """Bytes that are fetched at each pass, which is at least one for each token; 0 when all weights
    are on the device."""
    places = getattr(half, "hf_device_map", None) or {}
    away = "disk" if "disk" in places.values() else "cpu"
    if len({*places.values()}) < 2:
        return 0
    waiting = [half.get_submodule(path) for path, place in places.items() if place == away]
    return sum(weight.nbytes for layer in waiting for weight in layer.parameters())


@contextlib.contextmanager
def whole_layers(skeleton: Any, places: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Options of the loader for these places. It would have every linear layer fetched by itself;
    within this block it has layers fetched whole, which some read the weights of in one go."""
    from accelerate.utils import offload
    from safetensors import safe_open
    from transformers.integrations import accelerate as integration

    layers = [path for path, place in places.items() if place in AWAY]
    names = sorted({type(skeleton.get_submodule(path)).__name__ for path in layers})
    stock = integration.dispatch_model
    with tempfile.TemporaryDirectory(prefix="penstock-offload-") as folder:
        integration.dispatch_model = functools.partial(stock, preload_module_classes=names)
        # A mapped file counts as a whole against a limit, and each read tensor would map it anew.
        offload.safe_open = functools.partial(safe_open, backend="pread")
        try:
            yield {"device_map": places, "offload_folder": folder}
        finally:
            integration.dispatch_model = stock


def _place(
    module: nn.Module, path: str, absent: set[str], device: str, away: str, found: dict[str, str]
) -> None:
    """Fills `found` below one module: itself, or its parts where some of them are elsewhere."""
    if path in absent:
        return
    if isinstance(module, nn.ModuleList) and len(module) > 1:
        found.update({f"{path}.{name}": away for name, _ in module.named_children()})
        return
    if path and not _has_layers(module) and not any(p.startswith(f"{path}.") for p in absent):
        found[path] = device
        return
    prefix = f"{path}." if path else ""
    for name, child in module.named_children():
        _place(child, prefix + name, absent, device, away, found)
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    found.update({prefix + name: device for name, _ in own if prefix + name not in absent})


def _has_layers(module: nn.Module) -> bool:
    return any(isinstance(part, nn.ModuleList) and len(part) > 1 for part in module.modules())
