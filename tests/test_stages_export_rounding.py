"""Weights in few bits are as near as the bits let them be, and come back as their readers compute
with them."""

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import dequantize

from stages.export.rounding import (
    BLOCK_NUMBERS,
    CannotRound,
    most,
    round_to_nearest,
    suits,
    unrounded,
)

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def weights(rows: int = 48, columns: int = 256) -> torch.Tensor:
    """Numbers of which some are far out, as in real weights."""
    torch.manual_seed(0)
    return (
        torch.randn(rows, columns) * torch.rand(rows, 1) * 0.1
        + torch.randn(rows, columns) ** 5 / 999
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bits", [4, 8])
def test_what_comes_back_is_to_the_bit_what_compressed_tensors_unpacks(
    bits: int, dtype: torch.dtype
) -> None:
    rounded = round_to_nearest(weights(), bits, 32, dtype)
    assert rounded.numbers.dtype == torch.int8 and rounded.scales.dtype == torch.float32
    assert torch.equal(rounded.scales, rounded.scales.to(dtype).float())
    settings = QuantizationArgs(num_bits=bits, symmetric=True, strategy="group", group_size=32)
    theirs = dequantize(rounded.numbers, rounded.scales.to(dtype), args=settings)
    assert theirs.dtype == dtype
    assert torch.equal(unrounded(rounded, 32, dtype), theirs)


@pytest.mark.parametrize("bits", [4, 8])
def test_scales_of_least_error_beat_those_of_the_maximum(bits: int) -> None:
    weight = weights()
    rounded = round_to_nearest(weight, bits, 64, torch.bfloat16)
    assert int(rounded.numbers.abs().max()) >= most(bits)
    plain = weight.reshape(48, 4, 64)
    scales = (plain.abs().amax(-1, keepdim=True) / most(bits)).bfloat16().float()
    error = ((plain / scales).round().clamp(-most(bits) - 1, most(bits)) * scales - plain).square()
    found = (unrounded(rounded, 64, torch.float32) - weight).square()
    assert found.sum() < error.sum() * (0.85 if bits == 4 else 1.001)


def test_blocks_of_rows_are_rounded_as_each_row_alone() -> None:
    weight = weights(rows=2 * BLOCK_NUMBERS // 256 + 3)
    whole = round_to_nearest(weight, 4, 32, torch.bfloat16)
    for row in (0, BLOCK_NUMBERS // 256 - 1, BLOCK_NUMBERS // 256, len(weight) - 1):
        alone = round_to_nearest(weight[row : row + 1], 4, 32, torch.bfloat16)
        assert torch.equal(alone.numbers[0], whole.numbers[row])
        assert torch.equal(alone.scales[0], whole.scales[row])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_groups_of_zeros_and_of_next_to_nothing_stay_finite(dtype: torch.dtype) -> None:
    weight = torch.zeros(2, 64)
    weight[1] = 1e-9
    rounded = round_to_nearest(weight, 4, 32, dtype)
    assert bool(rounded.scales.gt(0).all())
    back = unrounded(rounded, 32, dtype)
    assert bool((back[0] == 0).all()) and bool(back.isfinite().all())
    assert float((back.float() - weight).abs().max()) <= 1e-9


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_fails(broken: float) -> None:
    weight = weights()
    weight[3, 5] = broken
    with pytest.raises(CannotRound, match="not finite"):
        round_to_nearest(weight, 4, 32, torch.bfloat16)


def test_weights_that_readers_would_refuse_are_told_with_the_reason() -> None:
    assert suits((7, 256), 4, 32) == suits((64, 128), 8, 128) == ""
    assert "100 columns" in suits((64, 100), 4, 32)
    assert "3 bits" in suits((64, 128), 3, 32)
    assert "groups of 16" in suits((64, 128), 4, 16)
    assert "3 dimensions" in suits((4, 64, 128), 4, 32)
