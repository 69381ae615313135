"""Remembers the output shapes of operators for given input shapes. Computes nothing."""

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
    """Return the value with everything of a kind inside it replaced by what the function makes of
    it."""
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
"""Results of operators by the outlines of their arguments: layers are alike, and asking torch takes
five times as long."""


class TensorSignature(NamedTuple):
    """A tensor's metadata without its data."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype


def outline(value: Any) -> Any:
    """Return all that decides the shapes that an operator gives, with a hash."""
    if isinstance(value, torch.Tensor):
        return TensorSignature(value.shape, value.stride(), value.dtype)
    if isinstance(value, list | tuple):
        return tuple(outline(part) for part in value)
    return value


def made_like(shapes: Any) -> Any:
    """Make tensors of these outlines, in the same nesting."""
    return changed(_empty, shapes, TensorSignature)


def _empty(outlined: TensorSignature) -> torch.Tensor:
    shape, stride, dtype = outlined
    if dtype.is_floating_point or dtype.is_complex:
        return torch.empty_strided(shape, stride, dtype=dtype, device=META)
    return torch.zeros(shape, dtype=dtype)
