"""Steps that are recorded as a CUDA graph and replayed: with the bits of steps that are computed one
by one, or not at all."""

from collections.abc import Callable

import pytest
import torch

from tests.support.fake_capture import faults_of
from tests.support.recorded_steps import (
    judged,
)


class Numbers:
    """What a planted fault works with."""

    def __init__(self) -> None:
        self.x = torch.randn(4, 8)
        self.n = torch.arange(4)
        self.mask = torch.rand(4, 8) > 0.5


PLANTED: dict[str, Callable[[Numbers], object]] = {
    "item": lambda p: p.x.sum().item(),
    "bool": lambda p: 1 if (p.x > 0).all() else 0,
    "tolist": lambda p: p.n.tolist(),
    "int": lambda p: int(p.n[0]),
    "nonzero": lambda p: p.mask.nonzero(),
    "index by a mask": lambda p: p.x[p.mask],
    "index by a list": lambda p: p.x[[0, 2]],
    "index made on the host": lambda p: p.x[torch.arange(2)],
    "constant of the host": lambda p: p.x + torch.tensor([1.0] * 8, device=p.x.device),
    "number of the host": lambda p: p.x * torch.tensor(2.0, device=p.x.device),
    "cpu": lambda p: p.x.cpu(),
    "to": lambda p: p.x.to("cpu"),
    "repeat_interleave": lambda p: torch.repeat_interleave(p.x, p.n, dim=0),
    "numpy": lambda p: p.n.numpy(),
}
HARMLESS: dict[str, Callable[[Numbers], object]] = {
    "products": lambda p: torch.nn.functional.softmax(p.x @ p.x.T, -1),
    "factor": lambda p: p.x * 2.0,
    "filled by a mask": lambda p: p.x.masked_fill(p.mask, 0.0),
}


@pytest.mark.parametrize("name", [*PLANTED, *HARMLESS])
def test_the_checker_sees_what_a_card_could_not_record(name: str) -> None:
    found = faults_of(Numbers(), {**PLANTED, **HARMLESS}[name])
    assert bool(found) == (name in PLANTED), found


@pytest.mark.parametrize(
    "variant", ["qwen2_5_vl", "gemma3", "llama4", "qwen3_5", "mistral_large4", "blip_2:t5"]
)
def test_replayed_steps_have_the_bits_of_plain_ones(variant: str) -> None:
    """One family for each kind of cache."""
    assert judged(variant) == ({}, "")
