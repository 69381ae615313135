"""Stores weights as bitsandbytes does: to the bit what `save_pretrained` of a quantized model
writes. Knows no model and no file."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from bitsandbytes import functional

from stages.models.precision.quantize import settings_of

BLOCK, SUPERBLOCK = 64, 256
"""Numbers that share a scale, and scales that share one."""
STATE_BYTES = 4096
"""About the bytes of the tables, and of their description, of one weight."""
ROW_FORMAT = 0
"""Number of bitsandbytes for numbers that lie row by row."""


class Nf4:
    """Four bits a number by the quantiles of a normal distribution, the scales quantized in turn
    (QLoRA, https://arxiv.org/abs/2305.14314)."""

    def names(self, name: str) -> list[str]:
        extras = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
        return [name, *(f"{name}.{extra}" for extra in (*extras, "quant_state.bitsandbytes__nf4"))]

    def size(self, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        numbers = math.prod(shape)
        return numbers // 2 + numbers // BLOCK + 4 * numbers // BLOCK // SUPERBLOCK + STATE_BYTES

    def tensors(self, name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        packed, state = functional.quantize_4bit(
            weight, blocksize=BLOCK, compress_statistics=True, quant_type="nf4"
        )
        extras: dict[str, torch.Tensor] = state.as_dict(packed=True)
        return {name: packed, **{f"{name}.{key}": value for key, value in extras.items()}}

    def settings(self, dtype: torch.dtype, spared: Iterable[str]) -> dict[str, Any]:
        return dict(settings_of("nf4", dtype, spared).to_dict())


class Int8:
    """Eight bits a number with a scale a row (LLM.int8(), https://arxiv.org/abs/2208.07339)."""

    def names(self, name: str) -> list[str]:
        owner = name.removesuffix("weight")
        return [name, f"{owner}SCB", f"{owner}weight_format"]

    def size(self, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        return math.prod(shape) + 4 * shape[0]

    def tensors(self, name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        numbers, scales, _ = functional.int8_vectorwise_quant(weight.to(torch.float16))
        form = torch.tensor(ROW_FORMAT, dtype=torch.uint8)
        return dict(zip(self.names(name), (numbers, scales, form), strict=True))

    def settings(self, dtype: torch.dtype, spared: Iterable[str]) -> dict[str, Any]:
        return dict(settings_of("int8", dtype, spared).to_dict())
