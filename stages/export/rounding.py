"""Rounds weights to small integers with one scale per group of columns, directly or by GPTQ.

The integers are symmetric, with no zero point: -8 … 7 in 4 bits, -128 … 127 in 8 bits. A weight is
its integer times its group's scale. The scale is first rounded to its stored type, so that the
choice of integers compensates for that error.

GPTQ quantizes a weight so that its product with given inputs changes as little as possible (Frantar
et al., https://arxiv.org/abs/2210.17323). It rounds columns in order, and spreads the error of each
over the columns after it. The inverse of the Hessian (the sum of x xᵀ over all inputs x) gives the
shares. A group's scales are chosen when its first column is reached, from the weights at that
point. Nothing is random: the same weight and Hessian give the same numbers on the same machine and
thread count.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch

STEPS = 16
"""Scales that are tried per group, for its maximum shrunk down to half."""
BLOCK_NUMBERS = 1 << 18
"""Weights per block; temporary data of a block fits a core's cache."""


class Rounded(NamedTuple):
    """A quantized weight."""

    numbers: torch.Tensor
    """int8 [rows, columns]."""
    scales: torch.Tensor
    """float32 [rows, columns / group]; each value is exact in the type in which it will be
    stored."""


class CannotRound(ValueError):
    """Raised for a weight that cannot be quantized in the requested format."""


def unsupported_columns(columns: int, group: int) -> str:
    """Return why a weight with so many columns cannot be in groups; empty if it can.

    Loaders need whole groups. compressed-tensors refuses columns that are not a multiple of the
    group (`_process_group`). So does vLLM, which allocates columns // group scales
    (`compressed_tensors_wNa16.py`). Its Marlin kernel pads rows and columns to its tiles, and has
    groups of 32, 64 and 128.

    A layer that does not suit stays unquantized and is listed in `ignore`. vLLM fuses some layers
    (q, k, v; gate, up), which must then all stay unquantized. They have the same number of columns,
    so they do.
    """
    return f"{columns} columns, which is not a multiple of {group}" if columns % group else ""


def round_to_nearest(weight: torch.Tensor, bits: int, group: int, dtype: torch.dtype) -> Rounded:
    """Round each number of a weight [rows, columns] to nearest. The scales have type `dtype`.

    Takes some MB in addition to the result. Raises CannotRound for a weight that is not finite.
    """
    rows, columns = weight.shape
    numbers = torch.empty(rows, columns, dtype=torch.int8, device=weight.device)
    scales = torch.empty(rows, columns // group, device=weight.device)
    for some in row_blocks(rows, columns, BLOCK_NUMBERS):
        values = finite(weight[some].float())
        scales[some] = scales_of(values, bits, group, dtype)
        numbers[some] = nearest(values, scales[some], bits)
    return Rounded(numbers, scales)


def unrounded(rounded: Rounded, group: int, dtype: torch.dtype) -> torch.Tensor:
    """Return the weight [rows, columns] in `dtype` as the loader computes it: bit-identical to what
    compressed-tensors unpacks."""
    rows, columns = rounded.numbers.shape
    grouped = rounded.numbers.reshape(rows, columns // group, group).to(dtype)
    return grouped.mul_(rounded.scales.to(dtype).unsqueeze(-1)).reshape(rows, columns)


def scales_of(values: torch.Tensor, bits: int, group: int, dtype: torch.dtype) -> torch.Tensor:
    """Return the scale of each group [rows, columns / group] with the least squared error among the
    shrunk maxima of the group."""
    rows, columns = values.shape
    grouped = values.reshape(rows, columns // group, group)
    full = grouped.abs().amax(-1).div_(max_int(bits))
    best = smallest_error = None
    for step in range(STEPS):
        scales = _storable(full * (1 - step / (2 * STEPS)), dtype)
        error = (
            torch.div(grouped, scales.unsqueeze(-1))
            .round_()
            .clamp_(-max_int(bits) - 1, max_int(bits))
        )
        error = error.mul_(scales.unsqueeze(-1)).sub_(grouped).square_().sum(-1)
        if best is None or smallest_error is None:
            best, smallest_error = scales, error
        else:
            best = torch.where(error < smallest_error, scales, best)
            smallest_error = torch.minimum(error, smallest_error)
    assert best is not None
    return best


def nearest(values: torch.Tensor, scales: torch.Tensor, bits: int) -> torch.Tensor:
    """Return the integers [rows, columns] nearest to values divided by their scales [rows,
    groups]."""
    rows, columns = values.shape
    scaled = values.reshape(rows, scales.shape[1], -1) / scales.unsqueeze(-1)
    scaled = scaled.round_().clamp_(-max_int(bits) - 1, max_int(bits))
    return scaled.reshape(rows, columns).to(torch.int8)


def max_int(bits: int) -> int:
    """Return the largest integer of so many bits."""
    return (1 << (bits - 1)) - 1


def row_blocks(rows: int, columns: int, numbers: int) -> Iterator[slice]:
    """Yield slices of rows with about `numbers` numbers each, at least one row."""
    at_once = max(1, numbers // max(1, columns))
    for first in range(0, rows, at_once):
        yield slice(first, min(first + at_once, rows))


def finite(values: torch.Tensor) -> torch.Tensor:
    """Return the values. Raises CannotRound if any is infinite or NaN."""
    if not bool(torch.isfinite(values).all()):
        raise CannotRound("the weight has infinite or NaN values")
    return values


def _storable(scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return scales as they are after storing. None is 0, because weights are divided by them: a
    group of zeros gets the smallest normal number."""
    bounds = torch.finfo(dtype)
    return scales.to(dtype).float().clamp_(bounds.smallest_normal, bounds.max)


LAZY = 128
"""Columns per block; the columns after a block are updated in one product."""
CALIBRATION_NUMBERS = 1 << 24
"""Weights per block of rows: 64 MiB."""
AT_ONCE = 128
"""Columns of the inverse that are computed at once."""
MAX_DAMPING = 1.0
"""Largest damping, as a share of the mean of the Hessian's diagonal. With more, little of the
Hessian remains."""


class NoInverse(CannotRound):
    """Raised for a Hessian that has no inverse, even with the largest damping."""


def gptq(
    weight: torch.Tensor,
    hessian: torch.Tensor,
    bits: int,
    group: int,
    dtype: torch.dtype,
    damp: float = 0.01,
) -> Rounded:
    """Round a weight [rows, columns] by the Hessian of its inputs [columns, columns], on the
    Hessian's device. The scales have type `dtype`. `damp` times the mean of the Hessian's diagonal
    is added to the diagonal.

    A column that no input touched is rounded to nearest, because it may still be used. Neither
    tensor is changed. The inversion takes 2.4 copies of the Hessian in float32, the rounding one.
    Added are copies of a block of rows in float32 and int8 (80 MiB) and the result. Raises
    NoInverse if the Hessian cannot be inverted, CannotRound for a weight that is not finite.
    """
    rows, columns = weight.shape
    factor = _factor(hessian, damp)
    numbers = torch.empty(rows, columns, dtype=torch.int8, device=hessian.device)
    scales = torch.empty(rows, columns // group, device=hessian.device)
    for some in row_blocks(rows, columns, CALIBRATION_NUMBERS):
        # Columns are processed one by one; as rows of the transposed weight they are contiguous.
        transposed = finite(weight[some].to(hessian.device, torch.float32)).t().contiguous()
        rounded = torch.empty(transposed.shape, dtype=torch.int8, device=hessian.device)
        for first in range(0, columns, LAZY):
            block = range(first, min(first + LAZY, columns))
            scales[some, block.start // group : block.stop // group] = _round_columns(
                transposed, rounded, factor, block, bits, group, dtype
            )
        numbers[some] = rounded.t()
    return Rounded(numbers, scales)


def _round_columns(
    transposed: torch.Tensor,
    rounded: torch.Tensor,
    factor: torch.Tensor,
    block: range,
    bits: int,
    group: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Round a block of columns of a transposed weight [columns, rows] into `rounded`, and spread
    their errors over the columns after them. Return their scales [rows, groups]."""
    first, end = block.start, block.stop
    losses = torch.empty(end - first, transposed.shape[1], device=transposed.device)
    scales = []
    for column in block:
        if column % group == 0:
            scales.append(scales_of(transposed[column : column + group].t(), bits, group, dtype))
        scale = scales[-1][:, 0]
        number = (
            torch.div(transposed[column], scale).round_().clamp_(-max_int(bits) - 1, max_int(bits))
        )
        rounded[column] = number
        loss = losses[column - first]
        torch.sub(transposed[column], number.mul_(scale), out=loss).div_(factor[column, column])
        transposed[column + 1 : end].addr_(factor[column, column + 1 : end], loss, alpha=-1)
    transposed[end:].addmm_(factor[first:end, end:].t(), losses, alpha=-1)
    return torch.cat(scales, 1)


def _factor(hessian: torch.Tensor, damp: float) -> torch.Tensor:
    """Return U, upper triangular, of the inverse UᵀU of the damped Hessian.

    The Hessian rotated by 180° is LLᵀ, and U is the inverse of L, rotated back. So the Hessian's
    own inverse, which loses digits, is never computed.
    """
    diagonal = hessian.diagonal().float()
    mean = diagonal.mean()
    while damp <= MAX_DAMPING:
        rotated = hessian.flip(0, 1).float()
        rotated.diagonal().add_(torch.where(diagonal == 0, 1.0, mean * damp).flip(0))
        lower, failed = torch.linalg.cholesky_ex(rotated)
        del rotated
        if not int(failed) and bool(torch.isfinite(lower.diagonal()).all()):
            return _rotated_inverse(lower)
        damp *= 10
    raise NoInverse("the Hessian of its inputs has no inverse")


def _rotated_inverse(lower: torch.Tensor) -> torch.Tensor:
    """Return the inverse of a lower triangular matrix, rotated by 180°."""
    size = len(lower)
    inverse = torch.empty_like(lower, memory_format=torch.contiguous_format)
    for first in range(0, size, AT_ONCE):
        end = min(first + AT_ONCE, size)
        ones = torch.zeros(size, end - first, device=lower.device)
        ones[first:end].fill_diagonal_(1)
        # Solve with the whole matrix; a slice of it would be copied.
        part = torch.linalg.solve_triangular(lower, ones, upper=False)
        inverse[:, size - end : size - first] = part.flip(0, 1)
    return inverse
