"""How a step is made: the rate over the steps, and gradients that pass a layer in 4 bit whatever it
was asked before."""

import importlib
from typing import Any

import pytest
import torch

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
