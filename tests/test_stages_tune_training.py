"""How a step is made: the order of the examples, the rate over the steps, and gradients that pass a
layer in 4 bit whatever it was asked before."""

import importlib
from collections import Counter
from typing import Any

import pytest
import torch

from stages.tune.order import Order
from stages.tune.training import WARMUP, differentiable, rate_at


def test_the_rate_rises_and_falls_to_nothing() -> None:
    steps = 200
    rates = [rate_at(step, steps, 1.0) for step in range(steps)]
    warm = round(WARMUP * steps)
    assert rates[:warm] == sorted(rates[:warm]) and max(rates) == 1.0
    assert rates[warm:] == sorted(rates[warm:], reverse=True) and 0 < rates[-1] < 0.01
    assert rate_at(0, 1, 1.0) == 1.0


@pytest.mark.parametrize("bias", [True, False])
def test_gradients_pass_a_layer_in_4_bit_that_was_only_asked_before(bias: bool) -> None:
    kind: Any = importlib.import_module("bitsandbytes.nn").Linear4bit
    torch.manual_seed(0)
    layer = kind(128, 128, bias=bias, quant_type="nf4", compute_dtype=torch.bfloat16)
    plain = layer.weight.data.clone()
    layer = layer.to("cpu").requires_grad_(False)
    differentiable(layer)
    layer.eval()
    asked = torch.randn(4, 128, dtype=torch.bfloat16)
    with torch.inference_mode():
        layer(asked)
    layer.train()
    given = asked.clone().requires_grad_(True)
    layer(given).float().sum().backward()
    assert given.grad is not None
    wanted = plain.sum(0).expand(4, -1)
    assert torch.cosine_similarity(given.grad.float(), wanted).min() > 0.95


COUNT, BATCH = 50, 4
ALIKE = [at % 3 for at in range(COUNT)]


@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_an_epoch_has_each_once(epoch: int) -> None:
    order = Order(ALIKE, BATCH, seed=1)
    steps = [order.of_step(epoch * order.epoch_steps + at) for at in range(order.epoch_steps)]
    assert Counter(at for step in steps for at in step) == Counter(range(COUNT))
    assert max(map(len, steps)) == BATCH


def test_most_steps_are_of_examples_that_are_alike() -> None:
    order = Order(ALIKE, BATCH, seed=1)
    kinds = [len({ALIKE[at] for at in order.of_step(step)}) for step in range(order.epoch_steps)]
    assert kinds.count(1) >= 0.7 * len(kinds)


def test_it_hangs_on_seed_and_step_alone() -> None:
    one, other = Order(ALIKE, BATCH, seed=1), Order(ALIKE, BATCH, seed=1)
    later = [one.of_step(step) for step in range(40)]
    assert other.of_step(31) == later[31] and other.of_step(2) == later[2]
    assert [Order(ALIKE, BATCH, seed=2).of_step(step) for step in range(40)] != later
    epoch = one.epoch_steps
    assert later[:epoch] != later[epoch : 2 * epoch]


def test_few_examples_make_short_steps() -> None:
    order = Order(["a"], BATCH, seed=0)
    assert order.epoch_steps == 1 and order.of_step(7) == [0]
