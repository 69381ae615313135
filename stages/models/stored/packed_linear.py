"""A linear layer whose weight stays packed as another program stored it."""

from typing import Any

import torch
from torch import nn

from stages.models.stored.codes import BESIDE, Codes, is_in_order, meta_codes, unpack
from stages.models.stored.layouts import StoredLayer


class PackedLinear(nn.Linear):
    """A linear layer that computes what the unpacked one computes, bit for bit."""

    group_of: torch.Tensor | None

    def __init__(self, layer: StoredLayer, *, bias: Any, stated: torch.dtype) -> None:
        """Make the layer without data. `stated`: type to which its weight is rounded."""
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.columns, layer.rows
        self.layer, self.stated = layer, stated
        held = meta_codes(layer)
        self.weight = nn.Parameter(held.codes, requires_grad=False)
        # Buffers keep the type of the file: the loader casts parameters only.
        for name in BESIDE:
            self.register_buffer(name, getattr(held, name))
        self.bias = bias

    @staticmethod
    def tensors(layer: StoredLayer) -> tuple[str, ...]:
        """Return the local names of its tensors besides the bias."""
        held = meta_codes(layer)
        return ("weight", *(name for name in BESIDE if getattr(held, name) is not None))

    def settle(self) -> None:
        """Drop an index that says only that groups follow one another. Called once it is loaded."""
        if self.group_of is not None and is_in_order(self.group_of, self.layer.block[1]):
            self.group_of = None

    def unpacked(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the weight [rows, columns] in this type."""
        held = Codes(self.weight, *(getattr(self, name) for name in BESIDE))
        return unpack(self.layer, held, self.stated, dtype)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() and input.requires_grad:
            result: torch.Tensor = _Product.apply(input, self)
            return result
        return nn.functional.linear(input, self.unpacked(input.dtype), self.bias)


class _Product(torch.autograd.Function):
    """The product of an input with a packed layer. The weight is unpacked again for the backward
    pass, so that no copy of it is kept."""

    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, layer: PackedLinear) -> torch.Tensor:
        ctx.layer = layer
        return nn.functional.linear(input, layer.unpacked(input.dtype), layer.bias)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (gradient,) = gradients
        return gradient @ ctx.layer.unpacked(gradient.dtype), None
