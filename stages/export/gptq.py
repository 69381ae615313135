"""Quantizes a weight by GPTQ: its product with given inputs changes as little as possible (Frantar
et al., https://arxiv.org/abs/2210.17323).

Columns are rounded in order, and the error of each is spread over the columns after it. The inverse
of the Hessian (the sum of x xᵀ over all inputs x) gives the shares. A group's scales are chosen
when its first column is reached, from the weights at that point. Nothing is random: the same weight
and Hessian give the same numbers on the same machine and thread count.
"""

import torch

from stages.export.rounding import CannotRound, Rounded, finite, max_int, row_blocks, scales_of

LAZY = 128
"""Columns per block; the columns after a block are updated in one product."""
BLOCK_NUMBERS = 1 << 24
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
    for some in row_blocks(rows, columns, BLOCK_NUMBERS):
        # Columns are processed one by one; as rows of the transposed weight they are contiguous.
        transposed = finite(weight[some].to(hessian.device, torch.float32)).t().contiguous()
        found = torch.empty(transposed.shape, dtype=torch.int8, device=hessian.device)
        for first in range(0, columns, LAZY):
            end = min(first + LAZY, columns)
            scales[some, first // group : end // group] = _round_columns(
                transposed, found, factor, first, end, bits, group, dtype
            )
        numbers[some] = found.t()
    return Rounded(numbers, scales)


def _round_columns(
    transposed: torch.Tensor,
    found: torch.Tensor,
    factor: torch.Tensor,
    first: int,
    end: int,
    bits: int,
    group: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Round columns `first` to below `end` of a transposed weight [columns, rows], and spread their
    errors over the columns after them. Return their scales [rows, groups]."""
    losses = torch.empty(end - first, transposed.shape[1], device=transposed.device)
    scales = []
    for column in range(first, end):
        if column % group == 0:
            scales.append(scales_of(transposed[column : column + group].t(), bits, group, dtype))
        scale = scales[-1][:, 0]
        number = (
            torch.div(transposed[column], scale).round_().clamp_(-max_int(bits) - 1, max_int(bits))
        )
        found[column] = number
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
    found = torch.empty_like(lower, memory_format=torch.contiguous_format)
    for first in range(0, size, AT_ONCE):
        end = min(first + AT_ONCE, size)
        ones = torch.zeros(size, end - first, device=lower.device)
        ones[first:end].fill_diagonal_(1)
        # Solve with the whole matrix; a slice of it would be copied.
        part = torch.linalg.solve_triangular(lower, ones, upper=False)
        found[:, size - end : size - first] = part.flip(0, 1)
    return found
