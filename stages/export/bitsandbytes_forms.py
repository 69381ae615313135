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
PIECE = 1 << 20
"""Numbers that are quantized at once, a multiple of a block: several copies are made of them."""
STATE_BYTES = 4096
"""About the bytes of the tables, and of their description, of one weight."""
ROW_FORMAT = 0
"""Number of bitsandbytes for numbers that lie row by row."""


class Nf4:
    """Four bits a number by the quantiles of a normal distribution, the scales quantized in turn
    (QLoRA, https://arxiv.org/abs/2305.14314)."""

    def takes(self, module: torch.nn.Module) -> str:
        return ""

    def names(self, name: str) -> list[str]:
        extras = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
        return [name, *(f"{name}.{extra}" for extra in (*extras, "quant_state.bitsandbytes__nf4"))]

    def size(self, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        numbers = math.prod(shape)
        return numbers // 2 + numbers // BLOCK + 4 * numbers // BLOCK // SUPERBLOCK + STATE_BYTES

    def tensors(self, name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        pieces = [
            functional.quantize_4bit(piece, blocksize=BLOCK, quant_type="nf4")
            for piece in weight.reshape(-1).split(PIECE)
        ]
        scales = torch.cat([state.absmax for _, state in pieces])
        offset = scales.mean()
        small, second = functional.quantize_blockwise(scales - offset, blocksize=SUPERBLOCK)
        state = functional.QuantState(  # type: ignore[no-untyped-call]
            absmax=small,
            shape=weight.shape,
            code=pieces[0][1].code,
            blocksize=BLOCK,
            quant_type="nf4",
            dtype=weight.dtype,
            offset=offset,
            state2=second,
        )
        extras: dict[str, torch.Tensor] = state.as_dict(packed=True)
        packed = torch.cat([found for found, _ in pieces])
        return {name: packed, **{f"{name}.{key}": value for key, value in extras.items()}}

    def settings(self, dtype: torch.dtype, spared: Iterable[str]) -> dict[str, Any]:
        return dict(settings_of("nf4", dtype, spared).to_dict())


class Int8:
    """Eight bits a number with a scale a row (LLM.int8(), https://arxiv.org/abs/2208.07339)."""

    def takes(self, module: torch.nn.Module) -> str:
        return ""

    def names(self, name: str) -> list[str]:
        owner = name.removesuffix("weight")
        return [name, f"{owner}SCB", f"{owner}weight_format"]

    def size(self, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        return math.prod(shape) + 4 * shape[0]

    def tensors(self, name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        pieces = [
            functional.int8_vectorwise_quant(rows.to(torch.float16))
            for rows in weight.split(max(1, PIECE // weight.shape[1]))
        ]
        numbers, scales = (torch.cat([piece[at] for piece in pieces]) for at in (0, 1))
        form = torch.tensor(ROW_FORMAT, dtype=torch.uint8)
        return dict(zip(self.names(name), (numbers, scales, form), strict=True))

    def settings(self, dtype: torch.dtype, spared: Iterable[str]) -> dict[str, Any]:
        return dict(settings_of("int8", dtype, spared).to_dict())
