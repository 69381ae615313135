"""Places the layers of a half outside the device.

Layers are placed outside the device when the half itself does not fit, and `streaming` brings each
to the device for its computation. Every forward pass, that is every token, needs all layers.
"""

import itertools
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

from torch import nn

from artifacts.errors import CannotFit
from artifacts.schema import Part
from stages.models.halves.boundary import absent_paths

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def placement(
    skeleton: "PreTrainedModel", keep: Part, extra_modules: tuple[str, ...], device: str, away: str
) -> dict[str, str]:
    """Return path → place of everything that the part keeps: layers away, the rest on the device.
    Raises CannotFit for a part without layers."""
    absent = set(absent_paths(skeleton, keep, extra_modules))
    places: dict[str, str] = {}
    _place(skeleton, "", absent, device, away, places)
    for first in _first_weights(skeleton, absent):
        places.update({p: device for p in places if first.startswith(f"{p}.")})
    if away not in places.values():
        raise CannotFit(
            f"{type(skeleton).__name__} has no layers that could be loaded one by one",
            hint="Give it more memory, or choose a lower precision",
        )
    return places


def _first_weights(skeleton: "PreTrainedModel", absent: Collection[str]) -> Iterator[str]:
    """Yield, for each model inside a model, the weight that determines its `device` property."""
    for path, module in skeleton.named_modules():
        if hasattr(type(module), "device"):
            names = (f"{path}.{name}".lstrip(".") for name, _ in module.named_parameters())
            present = (n for n in names if not any(f"{n}.".startswith(f"{p}.") for p in absent))
            yield from itertools.islice(present, 1)


def _place(
    module: nn.Module, path: str, absent: set[str], device: str, away: str, places: dict[str, str]
) -> None:
    """Fill `places` for one module: as a whole, or part by part if some parts are elsewhere."""
    if path in absent:
        return
    whole = (
        path
        and not any(map(_layers, module.modules()))
        and not any(p.startswith(f"{path}.") for p in absent)
    )
    if whole:
        places[path] = device
        return
    prefix, layers = f"{path}." if path else "", _layers(module)
    for name, child in module.named_children():
        if name in layers:
            places[prefix + name] = away
        else:
            _place(child, prefix + name, absent, device, away, places)
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    places.update({prefix + name: device for name, _ in own if prefix + name not in absent})


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
