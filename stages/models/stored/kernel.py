"""Computes the weight of a packed layer in one pass over its numbers, by a Triton kernel.

PyTorch's operators need three to five passes, and those that read a table of scales along columns
divide once for each number: a decode step of a 3B took 31 ms on an H200, 25 of them for unpacking
(docs/log.md). Here a number's code is read once and its weight written once.

This module imports Triton. `stages/models/stored/codes.py` imports it on a CUDA device only, and
uses it once it wrote the same bits as PyTorch's operators.
"""

import torch
import triton
import triton.language as tl

from stages.models.stored.layouts import StoredLayer

COLUMNS = 2048
"""Numbers of a row that one program writes."""


@triton.jit  # type: ignore[untyped-decorator]
def _numbers(code: tl.tensor, FP8: tl.constexpr, FP4: tl.constexpr) -> tl.tensor:
    """Return the numbers that codes mean. Those of FP8 (E4M3) and FP4 (E2M1) are put where fp16 has
    sign, exponent and mantissa; its exponents are 8 and 14 less."""
    if FP8:
        bits = code.to(tl.uint16)
        half = ((bits & 0x80) << 8) | ((bits & 0x7F) << 7)
        number = half.to(tl.float16, bitcast=True).to(tl.float32) * 256.0
        return tl.where((bits & 0x7F) == 0x7F, float("nan"), number)
    if FP4:
        bits = code.to(tl.uint16)
        half = ((bits & 8) << 12) | ((bits & 7) << 9)
        return half.to(tl.float16, bitcast=True).to(tl.float32) * 16384.0
    return code.to(tl.float32)


@triton.jit  # type: ignore[untyped-decorator]
def _write_weight(
    codes: tl.tensor,
    scales: tl.tensor,
    zeros: tl.tensor,
    group_of: tl.tensor,
    weight: tl.tensor,
    columns: tl.tensor,
    groups: tl.tensor,
    tall: tl.tensor,
    WIDE: tl.constexpr,
    MIDDLE: tl.constexpr,
    PAIRS: tl.constexpr,
    FP8: tl.constexpr,
    FP4: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """Write some columns of one row."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < columns
    if PAIRS:
        at = tl.program_id(1) * (COLUMNS // 2) + tl.arange(0, COLUMNS // 2)
        pair = tl.load(codes + row * (columns // 2) + at, at < columns // 2, 0)
        code = tl.join(pair & 15, pair >> 4).reshape(COLUMNS)
    else:
        code = tl.load(codes + row * columns + column, inside, 0)
    number = _numbers(code, FP8, FP4)
    group = column // WIDE if group_of is None else tl.load(group_of + column, inside, 0)
    place = row // tall * groups + group
    if zeros is None:
        number -= MIDDLE
    else:
        number -= tl.load(zeros + place, inside, 0).to(tl.float32)
    number *= tl.load(scales + place, inside, 0).to(tl.float32)
    tl.store(weight + row * columns + column, number.to(weight.dtype.element_ty), inside)


def write_weight(
    layer: StoredLayer,
    codes: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    group_of: torch.Tensor | None,
    weight: torch.Tensor,
) -> None:
    """Write the first rows of a layer's weight, as many as `weight` has, and round each number once
    to its type. `scales`: of 16 or 32 bit; the other tensors are as in `Codes`. All are
    contiguous."""
    tall, wide = layer.block
    _write_weight[len(weight), triton.cdiv(layer.columns, COLUMNS)](
        codes,
        scales,
        zeros,
        group_of,
        weight,
        layer.columns,
        layer.table[1],
        tall,
        WIDE=wide,
        MIDDLE=layer.middle,
        PAIRS=layer.pairs,
        FP8=layer.main.dtype == "F8_E4M3",
        FP4=layer.layout == "fp4",
        COLUMNS=COLUMNS,
        enable_fp_fusion=False,
    )
