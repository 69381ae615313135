"""GPTQ loses less of what a weight does to inputs of the kind it was calibrated on."""

import pytest
import torch

from stages.export import gptq as module
from stages.export.gptq import NoInverse, gptq
from stages.export.rounding import CannotRound, Rounded, round_to_nearest, unrounded

COLUMNS = 256


def inputs(count: int = 1024, columns: int = COLUMNS) -> torch.Tensor:
    """Inputs as those of a layer: correlated, and some of their parts much larger than others."""
    mixing = torch.randn(columns, columns) / 16 + torch.randn(columns, 8) @ torch.randn(8, columns)
    return torch.randn(count, columns) @ mixing * (torch.rand(columns) ** 4 * 4 + 0.1)


def error(rounded: Rounded, weight: torch.Tensor, seen: torch.Tensor, group: int = 32) -> float:
    lost = unrounded(rounded, group, torch.float32) - weight
    return float((seen @ lost.t()).square().sum())


@pytest.mark.parametrize(("bits", "group"), [(4, 32), (4, 64), (4, 128), (8, 128)])
def test_outputs_are_much_nearer_than_by_rounding_to_nearest(bits: int, group: int) -> None:
    torch.manual_seed(0)
    seen, weight = inputs(2048), torch.randn(96, COLUMNS)
    known, unknown = seen[:1024], seen[1024:]
    plain = round_to_nearest(weight, bits, group, torch.bfloat16)
    found = gptq(weight, known.t() @ known, bits, group, torch.bfloat16)
    assert torch.equal(found.scales, found.scales.bfloat16().float())
    assert error(found, weight, known, group) < error(plain, weight, known, group) / 3
    assert error(found, weight, unknown, group) < error(plain, weight, unknown, group) / 2


def test_numbers_are_those_of_the_method_written_plainly() -> None:
    """One column after the other, all that follow brought up to date at once, with the inverse
    itself."""
    torch.manual_seed(0)
    seen, weight = inputs(), torch.randn(8, COLUMNS)
    hessian = seen.t() @ seen
    found = gptq(weight, hessian, 4, 32, torch.float32)
    left = weight.double()
    rest = hessian.double() + torch.eye(COLUMNS) * hessian.diagonal().double().mean() * 0.01
    inverse = torch.linalg.inv(rest)
    wrong = 0
    for column in range(COLUMNS):
        scale = found.scales[:, column // 32].double()
        number = (left[:, column] / scale).round().clamp(-8, 7)
        wrong += int((number != found.numbers[:, column]).sum())
        loss = (left[:, column] - number * scale) / inverse[column, column]
        left -= torch.outer(loss, inverse[column])
        inverse -= torch.outer(inverse[:, column], inverse[column]) / inverse[column, column]
    assert wrong < 8 * COLUMNS / 100  # where a number lies midway, digits decide


def test_rows_are_rounded_by_themselves_and_always_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    seen, weight = inputs(columns=160), torch.randn(10, 160)
    hessian = seen.t() @ seen
    kept = weight.clone(), hessian.clone()
    whole = gptq(weight, hessian, 4, 32, torch.float16)
    assert torch.equal(weight, kept[0]) and torch.equal(hessian, kept[1])
    again = gptq(weight, hessian, 4, 32, torch.float16)
    assert torch.equal(whole.numbers, again.numbers) and torch.equal(whole.scales, again.scales)
    monkeypatch.setattr(module, "BLOCK_NUMBERS", 3 * 160)
    parts = gptq(weight, hessian, 4, 32, torch.float16)
    assert float((parts.numbers != whole.numbers).float().mean()) < 0.01


def test_columns_that_no_input_touched_are_rounded_to_nearest() -> None:
    torch.manual_seed(0)
    seen, weight = inputs(), torch.randn(16, COLUMNS)
    seen[:, 32:64] = 0
    found = gptq(weight, seen.t() @ seen, 4, 32, torch.bfloat16)
    plain = round_to_nearest(weight, 4, 32, torch.bfloat16)
    assert torch.equal(found.numbers[:, 32:64], plain.numbers[:, 32:64])
    assert error(found, weight, seen) < error(plain, weight, seen) / 2


def test_few_inputs_are_damped_until_there_is_an_inverse() -> None:
    torch.manual_seed(0)
    seen, weight = inputs(count=5), torch.randn(16, COLUMNS)
    hessian = seen.t() @ seen
    hessian -= torch.eye(COLUMNS) * hessian.diagonal().mean() * 0.05  # as digits lost make it
    found = gptq(weight, hessian, 4, 32, torch.bfloat16)
    plain = round_to_nearest(weight, 4, 32, torch.bfloat16)
    assert error(found, weight, seen) < error(plain, weight, seen)


@pytest.mark.parametrize("broken", ["nan", "negative"])
def test_a_hessian_without_inverse_fails(broken: str) -> None:
    weight, hessian = torch.randn(4, 64), torch.eye(64)
    if broken == "nan":
        hessian[3, 3] = float("nan")
    else:
        hessian[3, 3] = -64.0
    with pytest.raises(NoInverse, match="no inverse"):
        gptq(weight, hessian, 4, 32, torch.bfloat16)


def test_a_weight_that_is_not_finite_fails() -> None:
    weight = torch.randn(4, 64)
    weight[0, 0] = float("inf")
    with pytest.raises(CannotRound, match="not finite"):
        gptq(weight, torch.eye(64), 4, 32, torch.bfloat16)
