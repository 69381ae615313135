"""Finds the quantized layers of a checkpoint, and lets the loader read them as if they were not.

How a half is loaded from such a checkpoint:

1. `stored_layers` finds the layers by the headers of the files. Lists of layers that are not
   quantized play no part: the names in them changed between versions of transformers.
2. The loader reads files that have one weight in place of the tensors of a layer, under the name of
   the 16-bit checkpoint (`StoredWeightsFile`). So renaming, merging and halves need nothing new.
3. The weight is made when the loader asks for it, by one thread at a time, on the half's device.
   Nothing else of the layer stays in memory.
4. A layer that stays packed has its codes as `weight`, and its scales beside it (`PackedLinear`).
"""

import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from stages.models.hub.headers import Header
from stages.models.stored.codes import codes_of, unpack
from stages.models.stored.layouts import StoredLayer
from stages.models.stored.packed_linear import PackedLinear

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def split_targets(skeleton: "PreTrainedModel") -> list[str]:
    """Return patterns of the model's tensors that the loader makes of stored ones by converting,
    such as three of a fused one. `model_names` names one of them at most."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter

    mapping = get_model_conversion_mapping(skeleton)
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    return [pattern for entry in converters for pattern in entry.target_patterns]


def kind_of(kinds: Iterable[str]) -> str:
    """Return what captions call layers of these kinds; empty if there are none."""
    different = {*kinds}
    return different.pop() if len(different) == 1 else "mixed" if different else ""


def packable(skeleton: "PreTrainedModel", layers: Mapping[str, StoredLayer]) -> frozenset[str]:
    """Return the names of the layers that can stay packed in memory: plain linear layers in 4 or 8
    bit that share no weight."""
    linears = {path for path, module in skeleton.named_modules() if type(module) is nn.Linear}
    tied = {*(skeleton.all_tied_weights_keys or {})}
    return frozenset(
        name
        for name, layer in layers.items()
        if layer.packs and layer.module in linears and layer.path not in tied
    )


Read = Callable[[Header], torch.Tensor]
"""Reads one tensor of the files."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredWeights:
    """The quantized layers of a checkpoint, as the loader sees them. Safe to use from several
    threads."""

    layers: Mapping[str, StoredLayer]
    """Name of the weight → layer."""
    stated: torch.dtype
    """Type in which the checkpoint's weights are meant."""
    computed: torch.dtype
    """Type in which the half computes."""
    packed: frozenset[str] = frozenset()
    """Names of the weights that stay packed."""
    _lock: Any = field(default_factory=threading.Lock)
    _waiting: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    """Name of a packed weight → its tensors that the loader has not read yet."""

    def names(self, shard: str, names: Iterable[str]) -> list[str]:
        """Return the names that the loader sees in a file with these tensors."""
        hidden = {part.name for layer in self.layers.values() for part in layer.parts.values()}
        layers = [layer for layer in self.layers.values() if layer.main.shard == shard]
        names_of_parts = [
            f"{layer.stem}.{local}" for layer in layers for local in self._locals(layer)
        ]
        return [name for name in names if name not in hidden] + names_of_parts

    def _locals(self, layer: StoredLayer) -> Collection[str]:
        return PackedLinear.tensors(layer) if layer.name in self.packed else ("weight",)

    def find(self, name: str) -> StoredLayer | None:
        """Return the layer that a name of a weight, or of scales, belongs to."""
        stem, _, local = name.rpartition(".")
        layer = self.layers.get(f"{stem}.weight")
        return layer if layer is not None and local in self._locals(layer) else None

    def make(self, name: str, read: Read, device: str) -> torch.Tensor:
        """Return what the loader sees under this name. One layer is read at a time, which bounds
        the memory besides the result."""
        layer, local = self.find(name), name.rpartition(".")[2]
        assert layer is not None
        with self._lock, torch.no_grad():
            if layer.name in self.packed:
                if layer.name not in self._waiting:
                    self._waiting[layer.name] = self._codes(layer, read, device)
                waiting = self._waiting[layer.name]
                tensor = waiting.pop(local)
                if not waiting:
                    del self._waiting[layer.name]
                return tensor
            # In 16 bit, the loader casts: it knows which weights a model keeps in 32 bit.
            wide = self.computed == torch.float32
            codes = codes_of(layer, _read_all(layer, read, device))
            return unpack(layer, codes, self.stated, torch.float32 if wide else self.stated)

    def _codes(self, layer: StoredLayer, read: Read, device: str) -> dict[str, torch.Tensor]:
        codes = codes_of(layer, _read_all(layer, read, device))
        if codes.group_of is None:
            index = torch.arange(layer.columns, dtype=torch.int32, device=device)
            codes = codes._replace(group_of=index // layer.block[1])
        held = {"weight": codes.codes, **codes._asdict()}
        return {name: held[name] for name in PackedLinear.tensors(layer)}


def _read_all(layer: StoredLayer, read: Read, device: str) -> dict[str, torch.Tensor]:
    return {name: read(part).to(device) for name, part in layer.parts.items()}


def pack_linears(model: nn.Module, stored: StoredWeights) -> None:
    """Replace the layers of a model without data that stay packed, where the model has them."""
    layers = {stored.layers[name].module: stored.layers[name] for name in stored.packed}
    for path, module in list(model.named_modules()):
        if path in layers and type(module) is nn.Linear:
            packed = PackedLinear(layers[path], bias=module.bias, stated=stored.stated)
            model.set_submodule(path, packed)


FORM = "penstock_stored"
"""Attribute of a half with layers that were stored quantized: what became of them."""


def note_form(model: nn.Module, stored: StoredWeights) -> None:
    """Finish the packed layers of a loaded model, and note in which form its layers are."""
    packed = [module for module in model.modules() if isinstance(module, PackedLinear)]
    for module in packed:
        module.settle()
    held = {name for name, _ in model.named_parameters()}
    layers = [layer for layer in stored.layers.values() if layer.path in held]
    if layers:
        how = "unpacked layer by layer" if packed else "dequantized when loaded"
        model.__dict__[FORM] = f"{kind_of(layer.kind for layer in layers)}, {how}"
