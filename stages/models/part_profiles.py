"""Makes the profile of each part of a checkpoint, without its weights: its tensors, and their
layers. Knows no processor."""

import re
from collections import Counter
from dataclasses import replace
from typing import Any

from torch import nn

from artifacts.errors import UsageError
from artifacts.schema import Part
from stages.models.halves.boundary import (
    HALVES,
    absent_paths,
    belongs_to,
    pieces_called,
)
from stages.models.hub.headers import Header
from stages.models.precision.attention import attention_of, supports_flash
from stages.models.precision.quantize import check_stored, linears_of, quantizable
from stages.models.precision.weights import Weight, packed, weights_of
from stages.models.profile import AdaptableLayer, PartProfile

LAYER = re.compile(r"(?P<stack>[^0-9]*)\.\d+(?=\.)")
"""Pattern of the path of a layer in the name of a weight of it."""


def halves_of(skeleton: Any, headers: list[Header]) -> dict[Part, PartProfile]:
    pieces: dict[Part, tuple[str, ...]] = {half: pieces_called(skeleton, half) for half in HALVES}
    absent = {half: absent_paths(skeleton, half, pieces[half]) for half in HALVES}
    held: dict[Part, list[Weight]] = {half: [] for half in HALVES}
    weights = weights_of(skeleton, headers)
    _check_stored(skeleton, headers, weights)
    for weight in weights:
        for half in belongs_to(weight.path, absent):
            held[half].append(weight)
    if not held["vision"]:
        raise UsageError(
            f"the checkpoint of this {type(skeleton).__name__} holds no weights of a vision half",
            hint="Choose the whole vision-language checkpoint, not its text part",
        )
    own: dict[Part, list[AdaptableLayer]] = {half: [] for half in HALVES}
    for layer in _adaptable(skeleton, weights):
        # What both have is of the vision half: features are made with it.
        own["vision" if "vision" in belongs_to(layer.path, absent) else "language"].append(layer)
    return {
        half: replace(
            _part_profile(skeleton, half, found), pieces=pieces[half], adaptable=tuple(own[half])
        )
        for half, found in held.items()
    }


def _check_stored(skeleton: Any, headers: list[Header], weights: list[Weight]) -> None:
    kinds = {weight.kind for weight in weights if weight.kind}
    check_stored(skeleton.config, kinds, plain=not kinds and not packed(headers))


def _adaptable(skeleton: Any, weights: list[Weight]) -> list[AdaptableLayer]:
    """Return the linear layers of a model by both of their names."""
    ending = ".weight"
    stored = {w.path: w.name for w in weights if w.name.endswith(ending)}
    found = []
    for path, module in linears_of(skeleton).items():
        rows, columns = module.weight.shape
        if not isinstance(module, nn.Linear):  # it keeps its weight the other way round
            rows, columns = columns, rows
        name = stored.get(f"{path}{ending}", "").removesuffix(ending)
        found.append(AdaptableLayer(path, name, rows, columns))
    return found


def undivided(skeleton: Any, headers: list[Header]) -> dict[Part, PartProfile]:
    """Make the profiles of a model without a boundary: the second stage loads all of it."""
    nothing = PartProfile(shards=(), tensors=(), parameters=0, stored_bytes=0)
    weights = weights_of(skeleton, headers)
    _check_stored(skeleton, headers, weights)
    whole = _part_profile(skeleton, "whole", weights)
    return {
        "vision": nothing,
        "language": replace(whole, adaptable=tuple(_adaptable(skeleton, weights))),
    }


def _part_profile(skeleton: Any, half: Part, weights: list[Weight]) -> PartProfile:
    linears = quantizable(skeleton, half).values()
    stack = layers_of(weights)
    return PartProfile(
        shards=tuple(sorted({weight.shard for weight in weights})),
        tensors=tuple(sorted(weight.name for weight in weights)),
        parameters=sum(weight.parameters for weight in weights),
        stored_bytes=sum(weight.size for weight in weights),
        stored_as=next((weight.kind for weight in weights if weight.kind), ""),
        linear_modules=len(linears),
        linear_parameters=sum(linear.weight.numel() for linear in linears),
        linear_rows=sum(linear.weight.shape[0] for linear in linears),
        largest_linear=max((linear.weight.numel() for linear in linears), default=0),
        widest_linear=max((linear.weight.shape[0] for linear in linears), default=0),
        layers=len(stack),
        layer_parameters=max(stack.values(), default=0),
        attention=attention_of(skeleton, half),
        flash=supports_flash(skeleton, half),
    )


def layers_of(weights: list[Weight]) -> Counter[str]:
    """Return the path of each layer of the largest stack of them → how many numbers it holds."""
    stacks: dict[str, Counter[str]] = {}
    for weight in weights:
        if match := LAYER.match(weight.path):
            stacks.setdefault(match["stack"], Counter())[match[0]] += weight.parameters
    return max(stacks.values(), key=Counter.total, default=Counter())
