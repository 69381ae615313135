"""Chunked computation of a half's long inputs.

The position-wise modules of a half run over long inputs in chunks, which limits their peak memory.
The hidden layer of an MLP is several times as wide as its input and output. For a long prompt it is
the peak of decoding. A position-wise module is recognized by its structure, and then verified by
running it.
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from stages.models.halves.absent import MissingModule
from stages.models.protocols import Half

WIDENING = 2
"""A module is chunked if its widest layer is at least this many times as wide as its input."""
ALLOWED_MODULES = (
    "torch.nn.modules.activation",
    "torch.nn.modules.dropout",
    "transformers.activations",
)
"""Modules whose classes may stand between linear layers."""


def chunk_position_wise(half: Half, rows: int) -> int:
    """Make the MLPs of a half's layers process at most `rows` positions at once, permanently.
    Return the number of such MLPs. A second call changes nothing."""
    chunked = [m for m in half.modules() if isinstance(m.__dict__.get("forward"), _ChunkedForward)]
    if rows and not chunked:
        chunked = list(_mlps(half))
        for module in chunked:
            module.__dict__["forward"] = _ChunkedForward(module.forward, rows)
    return len(chunked)


class _ChunkedForward:
    """A module's forward, run over chunks of its input."""

    def __init__(self, forward: Callable[[torch.Tensor], torch.Tensor], rows: int) -> None:
        self._forward = forward
        self._rows = rows

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        flat = hidden.reshape(-1, hidden.shape[-1])
        if len(flat) <= self._rows:
            return self._forward(hidden)
        first = self._forward(flat[: self._rows])
        outputs = first.new_empty(len(flat), first.shape[-1])
        outputs[: self._rows] = first
        for at in range(self._rows, len(flat), self._rows):
            outputs[at : at + self._rows] = self._forward(flat[at : at + self._rows])
        return outputs.view(*hidden.shape[:-1], -1)


def _mlps(half: Half) -> Iterator[nn.Module]:
    """Yield the position-wise modules of the half's layers that are wider inside than outside. One
    module of each class and shape is tested."""
    is_position_wise: dict[Any, bool] = {}
    inside: list[nn.Module] = []
    for module in half.modules():
        if any(module is part for part in inside) or isinstance(module, MissingModule):
            continue
        linears = _linears(module)
        if len(linears) < 2:
            continue
        shapes = tuple((layer.in_features, layer.out_features) for layer in linears)
        kind = (type(module), shapes)
        if kind not in is_position_wise:
            outside, widest = shapes[0][0], max(width for _, width in shapes)
            widens = widest >= WIDENING * outside
            is_position_wise[kind] = widens and _is_position_wise(module, outside, half)
        if is_position_wise[kind]:
            inside.extend(module.modules())
            yield module


def _linears(module: nn.Module) -> list[Any]:
    """Return the linear layers of a module. Return none if it has other children besides
    activations and dropout, or weights of its own."""
    leaves = [part for part in module.modules() if not any(True for _ in part.children())]
    linears = [leaf for leaf in leaves if isinstance(leaf, nn.Linear)]  # quantized ones too
    others = [leaf for leaf in leaves if not isinstance(leaf, nn.Linear) and not _is_allowed(leaf)]
    own = [weight for part in module.modules() if part not in leaves for weight in part._parameters]
    return [] if others or own or len(linears) == len(leaves) == 1 else linears


def _is_allowed(leaf: nn.Module) -> bool:
    named = type(leaf).__module__ in ALLOWED_MODULES and not isinstance(leaf, nn.MultiheadAttention)
    return named or isinstance(leaf, nn.Identity)


def _is_position_wise(module: nn.Module, width: int, half: Half) -> bool:
    """Return whether two positions together give what each gives alone, for any arrangement."""
    rows = torch.randn(1, 2, width, generator=torch.Generator().manual_seed(0))
    rows = rows.to(device=half.device, dtype=half.dtype)
    if any(weight.is_meta for weight in module.parameters()):  # its weights are streamed
        module = copy.deepcopy(module).to_empty(device=half.device)
        for weight in module.parameters():
            nn.init.normal_(weight, std=weight.shape[-1] ** -0.5)
    try:
        with torch.inference_mode():
            together = module(rows)
            apart = torch.cat([module(rows[0, :1]), module(rows[0, 1:])])
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):
        return False  # it takes more than one tensor, or other axes
    if not isinstance(together, torch.Tensor) or together.shape[:2] != rows.shape[:2]:
        return False
    # Products of one row and of two are rounded differently.
    size = float(apart.float().abs().mean()) + torch.finfo(torch.float32).tiny
    return torch.allclose(together[0].float(), apart.float(), rtol=0.05, atol=0.05 * size)
