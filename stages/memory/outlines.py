"""Remembers what operators give for tensors of given shapes, data apart; computes nothing."""

from typing import Any, NamedTuple

import torch

from stages.memory.nested import changed

META = torch.device("meta")
IN_PLACE = object()
OUTLINES: dict[Any, Any] = {}
"""Results of operators by the outlines of their arguments: layers are alike, and asking torch takes
five times as long."""


class TensorOutline(NamedTuple):
    """A tensor without its data."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype


def outline(value: Any) -> Any:
    """Return all that decides the shapes that an operator gives, with a hash."""
    if isinstance(value, torch.Tensor):
        return TensorOutline(value.shape, value.stride(), value.dtype)
    if isinstance(value, list | tuple):
        return tuple(outline(part) for part in value)
    return value


def made_like(shapes: Any) -> Any:
    """Make tensors of these outlines, in the same nesting."""
    return changed(_empty, shapes, TensorOutline)


def _empty(outlined: TensorOutline) -> torch.Tensor:
    shape, stride, dtype = outlined
    if dtype.is_floating_point or dtype.is_complex:
        return torch.empty_strided(shape, stride, dtype=dtype, device=META)
    return torch.zeros(shape, dtype=dtype)
