"""Says what becomes of a weight in few bits: its tensors, their names and about their size. Knows
no file and no model."""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import torch

from stages.models.shards.layout import TensorSpec


class WeightForm(Protocol):
    """A way to store weights in few bits."""

    def takes(self, module: torch.nn.Module) -> str:
        """Return why a linear module's weight cannot be stored so; empty when it can."""

    def names(self, name: str) -> list[str]:
        """Return the names of the tensors that a weight is stored in."""

    def size(self, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        """Return about how many bytes they take: what is measured on the way varies."""

    def tensors(self, name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return them by name. The weight is of the type that the model computes in."""

    def settings(self, dtype: torch.dtype, spared: Iterable[str]) -> dict[str, Any]:
        """Return what config.json says of it; `spared` are the linear modules that stay."""


def specs_of(tensors: Mapping[str, torch.Tensor]) -> list[TensorSpec]:
    """Return the descriptions of tensors."""
    return [TensorSpec(name, t.dtype, tuple(t.shape)) for name, t in tensors.items()]
