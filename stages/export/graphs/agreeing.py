"""Says how far what graphs make is from what the towers make."""

import sys
from collections.abc import Iterator
from typing import Any

import torch

from artifacts.errors import UsageError
from stages.memory.nested import tensors

FURTHEST = {"fp32": 1e-3, "fp16": 5e-2}
"""What a graph computes in → by how much it may differ from its tower, in parts of the largest
number. In 8 bit real pictures tell, and noise does not: only what is no number is refused."""

KEPT = "Keep this model's vision half in torch: its classes cannot be exported"


def difference(wanted: Any, found: Any) -> float:
    """Return by how much one half's features differ from another's, at the most, in parts of the
    largest number; infinite where they are of other shapes or no numbers."""
    first, second = list(_of(wanted)), list(_of(found))
    if [one.shape for one in first] != [one.shape for one in second]:
        return float("inf")
    pairs = zip(first, second, strict=True)
    apart = [float((a - b).abs().max() / (a.abs().max() + 1e-9)) for a, b in pairs if a.numel()]
    worst = max(apart, default=0.0)
    return worst if worst == worst else float("inf")


def check_agreement(precision: str, tried: str, apart: float, path: str) -> None:
    """Raise UsageError where graphs make something else than the towers do."""
    if apart > FURTHEST.get(precision, sys.float_info.max):
        raise UsageError(
            f"the graph of {path} does not compute what the model does: {apart:.2g} apart, with "
            f"{tried}",
            hint=KEPT,
        )


def _of(made: Any) -> Iterator[torch.Tensor]:
    values = dict(made) if isinstance(made, dict) else made
    yield from (value.detach().double().cpu() for value in tensors(values))
