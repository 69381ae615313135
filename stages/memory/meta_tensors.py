"""Caches the output shapes of operators by their input shapes. Computes nothing."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch


def tensors(*values: Any) -> Iterator[torch.Tensor]:
    """Yield all tensors inside these values."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors(*value)
        elif isinstance(value, dict):
            yield from tensors(*value.values())


def changed(function: Callable[[Any], Any], value: Any, kind: type[Any] = torch.Tensor) -> Any:
    """Return the value with everything of class `kind` inside it replaced by `function` of it."""
    if isinstance(value, kind):
        return function(value)
    if isinstance(value, list | tuple):
        return type(value)(changed(function, part, kind) for part in value)
    if isinstance(value, dict):
        return {name: changed(function, part, kind) for name, part in value.items()}
    return value


META = torch.device("meta")
IN_PLACE = object()
OUTLINES: dict[Any, Any] = {}
"""Signatures of arguments → signatures of results. Layers repeat, and torch takes five times as
long."""


class TensorSignature(NamedTuple):
    """A tensor's metadata without its data."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype


def outline(value: Any) -> Any:
    """Return a hashable signature of everything that decides the output shapes of an operator."""
    if isinstance(value, torch.Tensor):
        return TensorSignature(value.shape, value.stride(), value.dtype)
    if isinstance(value, list | tuple):
        return tuple(outline(part) for part in value)
    return value


def made_like(shapes: Any) -> Any:
    """Return empty tensors with these signatures, in the same nesting."""
    return changed(_empty, shapes, TensorSignature)


def _empty(outlined: TensorSignature) -> torch.Tensor:
    shape, stride, dtype = outlined
    if dtype.is_floating_point or dtype.is_complex:
        return torch.empty_strided(shape, stride, dtype=dtype, device=META)
    return torch.zeros(shape, dtype=dtype)
