"""Maps a checkpoint's tensor names to the model's, and finds what a half's precision depends on.

The module finds the quantized tensors by their names and reads no file. It also finds the attention
implementation that the classes of one half support.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from artifacts.disk.json_shapes import Json
from artifacts.schema import Part
from stages.models.halves.boundary import absent_paths, within
from stages.models.hub.headers import Header
from stages.models.protocols import ModelOrHalf, module_of
from stages.models.stored.layer_names import model_names
from stages.models.stored.layouts import BITSANDBYTES, StoredLayer

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


def attention_of(model: ModelOrHalf, keep: Part = "whole") -> str:
    """Return the attention implementations in a model, or in one half: usually one, else several
    joined by `+`."""
    return "+".join(sorted({str(p.config._attn_implementation) for p in _kept(model, keep)}))


def supports_flash(skeleton: "PreTrainedModel", keep: Part) -> bool:
    """Return whether every class of one half supports FlashAttention."""
    return all(part._supports_flash_attn for part in _kept(skeleton, keep))


def for_half(skeleton: "PreTrainedModel", keep: Part, implementation: str) -> dict[str, Json]:
    """Return the `attn_implementation` argument that selects it for one half and leaves the other
    half its default. A class that does not support it refuses to be built."""
    configs = {id(part.config) for part in _kept(skeleton, keep)}
    return _choices(skeleton.config, configs, implementation)


def _choices(config: "PreTrainedConfig", kept: set[int], implementation: str) -> dict[str, Json]:
    parts = {name: getattr(config, name, None) for name in config.sub_configs}
    choices: dict[str, Json] = {
        name: _choices(part, kept, implementation)
        for name, part in parts.items()
        if part is not None
    }
    return {**choices, "": implementation} if id(config) in kept else choices


def _kept(model: ModelOrHalf, keep: Part) -> "list[PreTrainedModel]":
    from transformers import PreTrainedModel

    absent = absent_paths(module_of(model), keep)
    return [
        module
        for path, module in model.named_modules()
        if isinstance(module, PreTrainedModel)
        and not any(within(path, ancestor) for ancestor in absent)
    ]


FEW_BITS = ("F8_", "F4", "I8", "U8", "I32")
"""Prefixes of the file types of quantized weights."""


class Weight(NamedTuple):
    """One stored tensor that has a place in the model."""

    name: str
    """Name in the checkpoint."""
    shard: str
    path: str
    """Name in the model; for scales of a quantized weight, the name of that weight."""
    parameters: int
    """Number of the model's parameters in it; 0 for scales."""
    size: int
    """Size in bytes."""
    kind: str
    """`int8`, `nf4`, `fp4`, or the kind of a `StoredLayer`, for a quantized weight and its scales;
    else empty."""


def weights_of(
    skeleton: "PreTrainedModel", headers: Sequence[Header], layers: Mapping[str, StoredLayer]
) -> list[Weight]:
    """Return the stored tensors that belong to the model, from the headers of its files. `layers`
    are those that another program than bitsandbytes quantized."""
    names = [header.name for header in headers]
    kinds = {} if layers else quantized_weights(names)
    parts = {part.name: layer for layer in layers.values() for part in layer.parts.values()}
    # The weight that a tensor belongs to: itself, unless it is the scale of another.
    homes = [_of(n) if BITSANDBYTES.search(n) and _of(n) in kinds else n for n in names]
    homes = [parts[n].name if n in parts else home for n, home in zip(names, homes, strict=True)]
    kinds |= {layer.name: layer.kind for layer in layers.values()}
    weights = []
    for header, home, path in zip(headers, homes, model_names(skeleton, homes), strict=True):
        if path is None:
            continue
        numbers = torch.Size(header.shape).numel()
        if home in kinds:  # two 4-bit numbers are stored in one byte
            codes = layers[home].main.name if home in layers else home
            numbers = skeleton.get_parameter(path).numel() if codes == header.name else 0
        kind = kinds.get(home, "")
        weights.append(Weight(header.name, header.shard, path, numbers, header.size, kind))
    return weights


def has_codes(headers: Iterable[Header]) -> bool:
    """Return whether any tensor of these files has the type of quantized weights."""
    return any(header.dtype.startswith(FEW_BITS) for header in headers)


def quantized_weights(names: Iterable[str]) -> dict[str, str]:
    """Return the quantized weights: name in the checkpoint → kind."""
    kinds: dict[str, str] = {}
    for name in names:
        match = BITSANDBYTES.search(name)
        if match and (kind := "int8" if match["row_scales"] else match["kind"]):
            kinds[_of(name)] = kind
    return kinds


def stored_modules(skeleton: "PreTrainedModel", names: Iterable[str]) -> dict[str, str]:
    """Return the modules whose weight is quantized in the checkpoint: path in the model → kind."""
    kinds = quantized_weights(names)
    paths = zip(kinds.values(), model_names(skeleton, list(kinds)), strict=True)
    return {path.removesuffix(".weight"): kind for kind, path in paths if path}


def _of(name: str) -> str:
    return BITSANDBYTES.sub(".weight", name)
