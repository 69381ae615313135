"""Training of a half in fp16: small gradients survive, and infinite ones change nothing."""

import importlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from artifacts.errors import UsageError
from stages.tune import training
from stages.tune.job import ADAMW, ADAMW8, PAGED_ADAMW8
from stages.tune.training import MAX_SKIPPED, Trainer, optimizer_of
from tests.support.waves import events

SMALL = 1e-8
"""Less than half of the smallest number in fp16."""


def losses(monkeypatch: pytest.MonkeyPatch, weight: nn.Parameter, factors: list[float]) -> None:
    """Let the loss of each step be the weight in fp16 times a factor."""
    left = iter(factors)

    def loss_of(*_: Any) -> torch.Tensor:
        return (weight.to(torch.float16).float() * next(left)).sum()

    monkeypatch.setattr(training, "loss_of", loss_of)
    monkeypatch.setattr(training, "group_batches", lambda examples, rows: [examples])


def stepped(weight: nn.Parameter, steps: int, dtype: torch.dtype = torch.float16) -> list[bool]:
    """Take steps; return which of them changed the weight."""
    half, example = SimpleNamespace(dtype=dtype), SimpleNamespace(ids=[1])
    found = []
    with events() as (report, _):
        trainer = Trainer(half, None, [weight], optimizer_of(ADAMW, [weight], 0.1), report, 1)
        for _ in range(steps):
            before = weight.detach().clone()
            trainer.step([example], 0.1)  # type: ignore[list-item]
            found.append(not torch.equal(before, weight))
    return found


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_too_small_for_fp16_are_scaled_there(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = nn.Parameter(torch.ones(4))
    losses(monkeypatch, weight, [SMALL])
    assert stepped(weight, 1, dtype) == [dtype == torch.float16]
    assert weight.grad is not None
    wanted = torch.full((4,), SMALL if dtype == torch.float16 else 0.0)
    assert torch.allclose(weight.grad, wanted, rtol=1e-2, atol=0)


def test_a_step_with_an_infinite_gradient_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = nn.Parameter(torch.ones(4))
    losses(monkeypatch, weight, [1.0, 1e4, 1.0])
    assert stepped(weight, 3) == [True, False, True]
    assert bool(weight.isfinite().all())


def test_many_of_them_in_a_row_end_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = nn.Parameter(torch.ones(4))
    losses(monkeypatch, weight, [1e4] * MAX_SKIPPED)
    with pytest.raises(UsageError, match="infinite in 10 steps") as caught:
        stepped(weight, MAX_SKIPPED)
    assert "--precision" in caught.value.hint


def test_moments_are_paged_only_if_requested(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    names = ("AdamW8bit", "PagedAdamW8bit")
    kinds = {n: (lambda *_, n=n, **__: made.append(n)) for n in names}
    monkeypatch.setattr(importlib, "import_module", lambda _: SimpleNamespace(**kinds))
    on_gpu: Any = [SimpleNamespace(device=torch.device("cuda:0"))]
    for name in (ADAMW8, PAGED_ADAMW8):
        optimizer_of(name, on_gpu, 0.1)
    assert made == [*names]
