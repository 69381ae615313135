"""Rounds weights to small integers with one scale per group of columns.

The integers are symmetric, with no zero point: -8 … 7 in 4 bits, -128 … 127 in 8 bits. A weight is
its integer times its group's scale. The scale is first rounded to its stored type, so that the
choice of integers makes up for that error.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch

from stages.export.jobs import GROUPS, PACKED

BITS = tuple(PACKED.values())
STEPS = 16
"""Shrinkings of a group's maximum that are tried for its scale: down to half of it."""
BLOCK_NUMBERS = 1 << 18
"""Weights that are looked at at once; what is made beside them stays in a core's cache."""


class Rounded(NamedTuple):
    """A quantized weight."""

    numbers: torch.Tensor
    """int8 [rows, columns]."""
    scales: torch.Tensor
    """float32 [rows, columns / group], each a number of the type it will be stored in."""


class CannotRound(ValueError):
    """Raised for a weight that cannot be quantized in the requested format."""


def suits(shape: tuple[int, ...], bits: int, group: int) -> str:
    """Return why a weight of this shape cannot be in this form; empty when it can.

    Whoever loads it holds whole groups: compressed-tensors refuses columns that are no multiple of
    the group (`_process_group`), and so does vLLM, whose room for scales is columns // group
    (`compressed_tensors_wNa16.py`; its Marlin kernel pads rows and columns to its tiles itself, and
    has groups of 32, 64 and 128). A module that does not suit stays as it is, named in `ignore`;
    in vLLM the linears that it fuses (q, k, v; gate, up) must then all stay so. They have one
    number of columns, so that they do.
    """
    if bits not in BITS:
        return f"{bits} bits are neither of {' and '.join(map(str, BITS))}"
    if group not in GROUPS:
        return f"groups of {group} columns are none of {', '.join(map(str, GROUPS))}"
    if len(shape) != 2:
        return f"a weight of {len(shape)} dimensions has no rows and columns"
    if shape[1] % group:
        return f"{shape[1]} columns are no multiple of the group of {group}"
    return ""


def round_to_nearest(weight: torch.Tensor, bits: int, group: int, dtype: torch.dtype) -> Rounded:
    """Round a weight [rows, columns], each number by itself. The scales are of `dtype`.

    Takes some MB beside the result. Raises CannotRound for a weight that is not finite.
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
    """Return the weight [rows, columns] that is computed with, in `dtype`: to the bit what
    compressed-tensors unpacks."""
    rows, columns = rounded.numbers.shape
    grouped = rounded.numbers.reshape(rows, columns // group, group).to(dtype)
    return grouped.mul_(rounded.scales.to(dtype).unsqueeze(-1)).reshape(rows, columns)


def scales_of(values: torch.Tensor, bits: int, group: int, dtype: torch.dtype) -> torch.Tensor:
    """Return the scale of each group [rows, columns / group] with the least squared error, of those
    that shrink the group's maximum."""
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
    """Return the numbers [rows, columns] nearest to values in units of their groups' scales
    [rows, groups]."""
    rows, columns = values.shape
    found = values.reshape(rows, scales.shape[1], -1) / scales.unsqueeze(-1)
    found = found.round_().clamp_(-max_int(bits) - 1, max_int(bits))
    return found.reshape(rows, columns).to(torch.int8)


def max_int(bits: int) -> int:
    """Return the largest number of so many bits."""
    return (1 << (bits - 1)) - 1


def row_blocks(rows: int, columns: int, numbers: int) -> Iterator[slice]:
    """Yield stretches of rows that have about so many numbers each, and at least one row."""
    at_once = max(1, numbers // max(1, columns))
    for first in range(0, rows, at_once):
        yield slice(first, min(first + at_once, rows))


def finite(values: torch.Tensor) -> torch.Tensor:
    """Return the values. Raises CannotRound when one of them is infinite or not a number."""
    if not bool(torch.isfinite(values).all()):
        raise CannotRound("the weight has numbers that are not finite")
    return values


def _storable(scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return scales as they come back from where they are stored. None is 0, by which nothing can
    be divided: a group of zeros has the least there is."""
    bounds = torch.finfo(dtype)
    return scales.to(dtype).float().clamp_(bounds.smallest_normal, bounds.max)
