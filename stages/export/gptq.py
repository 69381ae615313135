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
"""Columns after which those that follow are brought up to date, in one product."""
BLOCK_NUMBERS = 1 << 24
"""Weights of the rows that are rounded at once: 64 MiB."""
AT_ONCE = 128
"""Columns of an inverse that are made at once."""
MAX_DAMPING = 1.0
"""Share of the mean of the Hessian's diagonal; with more of it there is little left to follow."""


class NoInverse(CannotRound):
    """Raised for a Hessian that has no inverse, however much it is damped."""


def gptq(
    weight: torch.Tensor,
    hessian: torch.Tensor,
    bits: int,
    group: int,
    dtype: torch.dtype,
    damp: float = 0.01,
) -> Rounded:
    """Round a weight [rows, columns] by the Hessian of its inputs [columns, columns], where that
    is. The scales are of `dtype`; `damp` is the share of the mean of the Hessian's diagonal that is
    added to it.

    A column that no input touched is rounded to nearest: what was not seen is not what is not used.
    Neither tensor is changed. It takes 2.4 copies of the Hessian in float32 while that is
    inverted, then one; of the weight, copies in float32 and int8 of the rows that are rounded at
    once (80 MiB), beside the result. Raises NoInverse when the Hessian cannot be inverted,
    CannotRound for a weight that is not finite.
    """
    rows, columns = weight.shape
    factor = _factor(hessian, damp)
    numbers = torch.empty(rows, columns, dtype=torch.int8, device=hessian.device)
    scales = torch.empty(rows, columns // group, device=hessian.device)
    for some in row_blocks(rows, columns, BLOCK_NUMBERS):
        # Columns are gone through one by one: as rows of the turned weight they lie together.
        turned = finite(weight[some].to(hessian.device, torch.float32)).t().contiguous()
        found = torch.empty(turned.shape, dtype=torch.int8, device=hessian.device)
        for first in range(0, columns, LAZY):
            end = min(first + LAZY, columns)
            scales[some, first // group : end // group] = _round_columns(
                turned, found, factor, first, end, bits, group, dtype
            )
        numbers[some] = found.t()
    return Rounded(numbers, scales)


def _round_columns(
    turned: torch.Tensor,
    found: torch.Tensor,
    factor: torch.Tensor,
    first: int,
    end: int,
    bits: int,
    group: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Round columns first … end of a turned weight [columns, rows], put what they lose on those
    after them, and return their scales [rows, groups]."""
    losses = torch.empty(end - first, turned.shape[1], device=turned.device)
    scales = []
    for column in range(first, end):
        if column % group == 0:
            scales.append(scales_of(turned[column : column + group].t(), bits, group, dtype))
        scale = scales[-1][:, 0]
        number = torch.div(turned[column], scale).round_().clamp_(-max_int(bits) - 1, max_int(bits))
        found[column] = number
        loss = losses[column - first]
        torch.sub(turned[column], number.mul_(scale), out=loss).div_(factor[column, column])
        turned[column + 1 : end].addr_(factor[column, column + 1 : end], loss, alpha=-1)
    turned[end:].addmm_(factor[first:end, end:].t(), losses, alpha=-1)
    return torch.cat(scales, 1)


def _factor(hessian: torch.Tensor, damp: float) -> torch.Tensor:
    """Return U, upper triangular, of the inverse UᵀU of the damped Hessian.

    The Hessian turned by 180° is LLᵀ, and U is the inverse of L, turned back. So the Hessian's own
    inverse, which loses digits, is never made.
    """
    diagonal = hessian.diagonal().float()
    mean = diagonal.mean()
    while damp <= MAX_DAMPING:
        turned = hessian.flip(0, 1).float()
        turned.diagonal().add_(torch.where(diagonal == 0, 1.0, mean * damp).flip(0))
        lower, failed = torch.linalg.cholesky_ex(turned)
        del turned
        if not int(failed) and bool(torch.isfinite(lower.diagonal()).all()):
            return _inverse_turned(lower)
        damp *= 10
    raise NoInverse("the Hessian of its inputs has no inverse")


def _inverse_turned(lower: torch.Tensor) -> torch.Tensor:
    """Return the inverse of a lower triangular matrix, turned by 180°."""
    size = len(lower)
    found = torch.empty_like(lower, memory_format=torch.contiguous_format)
    for first in range(0, size, AT_ONCE):
        end = min(first + AT_ONCE, size)
        ones = torch.zeros(size, end - first, device=lower.device)
        ones[first:end].fill_diagonal_(1)
        # Of the whole matrix: a part of it would be copied.
        part = torch.linalg.solve_triangular(lower, ones, upper=False)
        found[:, size - end : size - first] = part.flip(0, 1)
    return found
