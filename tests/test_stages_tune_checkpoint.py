"""A training: checkpoints that come back as they were, order of examples, rates and gradients."""

import importlib
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from artifacts.files import HALF, whole_file
from stages.models.adapters.reading import ADAPTER_WEIGHTS
from stages.process.report import EventReporter
from stages.tune.checkpoint import TrainingProgress, resume, save_checkpoint
from stages.tune.job import ADAMW, ADAMW8, RECORD
from stages.tune.run import EpochBatchOrder, run
from stages.tune.training import WARMUP, keep_differentiable, learning_rate_at, optimizer_of

RECIPE = {"rank": 4}
SHAPES = ((64, 128), (96, 64), (8,))
"""Of which the last is too small for moments in 8 bit."""


def numbers(seed: int) -> list[nn.Parameter]:
    torch.manual_seed(seed)
    return [nn.Parameter(torch.randn(shape)) for shape in SHAPES]


def stepped(trained: list[nn.Parameter], optimizer: torch.optim.Optimizer, seed: int) -> None:
    torch.manual_seed(seed)
    for each in trained:
        each.grad = torch.randn_like(each)
    optimizer.step()


@pytest.mark.parametrize("kind", [ADAMW, ADAMW8])
def test_who_goes_on_makes_the_next_step_to_the_same_numbers(tmp_path: Path, kind: str) -> None:
    one = numbers(0)
    first = optimizer_of(kind, one, 0.1)
    stepped(one, first, 1)
    progress = TrainingProgress(step=1, losses=[2.0], memory=[7], held_out=[(1, 3.0)])
    progress.best = [each.detach().clone() for each in one]
    save_checkpoint(tmp_path, RECIPE, progress, one, first)
    other = numbers(5)
    second = optimizer_of(kind, other, 0.1)
    found = resume(tmp_path, RECIPE, other, second)
    assert found is not None
    assert (found.step, found.losses, found.memory, found.best_step) == (1, [2.0], [7], 1)
    assert all(map(torch.equal, found.best, progress.best))
    assert all(map(torch.equal, one, other))
    stepped(one, first, 2)
    stepped(other, second, 2)
    assert all(map(torch.equal, one, other))


def test_another_optimizer_keeps_the_numbers_and_not_the_moments(tmp_path: Path) -> None:
    one = numbers(0)
    first = optimizer_of(ADAMW, one, 0.1)
    stepped(one, first, 1)
    save_checkpoint(tmp_path, RECIPE, TrainingProgress(step=1), one, first)
    other = numbers(5)
    second = optimizer_of(ADAMW8, other, 0.1)
    found = resume(tmp_path, RECIPE, other, second)
    assert found is not None and found.step == 1
    assert all(map(torch.equal, one, other)) and not second.state


def test_of_another_recipe_or_of_none_nothing_is_taken(tmp_path: Path) -> None:
    one = numbers(0)
    optimizer = optimizer_of(ADAMW, one, 0.1)
    assert resume(tmp_path, RECIPE, one, optimizer) is None
    save_checkpoint(tmp_path, RECIPE, TrainingProgress(step=1), one, optimizer)
    other = numbers(5)
    assert resume(tmp_path, {"rank": 8}, other, optimizer_of(ADAMW, other, 0.1)) is None
    assert all(map(torch.equal, other, numbers(5)))


def test_a_training_that_goes_on_sweeps_what_a_killed_one_left_half_written(tmp_path: Path) -> None:
    (tmp_path / RECORD).write_text(json.dumps({"recipe": RECIPE, "finished": True}))
    (tmp_path / ADAPTER_WEIGHTS).write_bytes(b"")
    (left := tmp_path / f"{HALF}x7f3k_1a").write_bytes(b"half")
    with pytest.raises(RuntimeError, match="killed"), whole_file(tmp_path / "new") as file:
        file.write(b"x")
        (own,) = {*tmp_path.glob(f"{HALF}*")} - {left}
        os.link(own, tmp_path / f"{HALF}abcdefgh")
        raise RuntimeError("killed")
    assert len(list(tmp_path.glob(f"{HALF}*"))) == 2
    job: dict[str, Any] = {
        "half": {"model": "demo"},
        "store": "",
        "features_namespace": "",
        "folder": str(tmp_path),
        "recipe": RECIPE,
        "examples": [["k", "p", "c"]],
        "held_out": [],
        "steps": 1,
        "batch": 1,
        "rows": 1,
        "rate": 0.1,
    }
    run(job, EventReporter(os.open(os.devnull, os.O_WRONLY), None))
    assert list(tmp_path.glob(f"{HALF}*")) == []
    assert (tmp_path / ADAPTER_WEIGHTS).exists()


def test_the_rate_rises_and_falls_to_nothing() -> None:
    steps = 200
    rates = [learning_rate_at(step, steps, 1.0) for step in range(steps)]
    warm = round(WARMUP * steps)
    assert rates[:warm] == sorted(rates[:warm]) and max(rates) == 1.0
    assert rates[warm:] == sorted(rates[warm:], reverse=True) and 0 < rates[-1] < 0.01
    assert learning_rate_at(0, 1, 1.0) == 1.0


@pytest.mark.parametrize("bias", [True, False])
def test_gradients_pass_a_layer_in_4_bit_that_was_only_asked_before(bias: bool) -> None:
    kind: Any = importlib.import_module("bitsandbytes.nn").Linear4bit
    torch.manual_seed(0)
    layer = kind(128, 128, bias=bias, quant_type="nf4", compute_dtype=torch.bfloat16)
    plain = layer.weight.data.clone()
    layer = layer.to("cpu").requires_grad_(False)
    keep_differentiable(layer)
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
def test_an_epoch_has_each_once_most_of_them_with_examples_that_are_alike(epoch: int) -> None:
    order = EpochBatchOrder(ALIKE, BATCH, seed=1)
    steps = [order.batch_at(epoch * order.epoch_steps + at) for at in range(order.epoch_steps)]
    assert Counter(at for step in steps for at in step) == Counter(range(COUNT))
    assert max(map(len, steps)) == BATCH
    kinds = [len({ALIKE[at] for at in step}) for step in steps]
    assert kinds.count(1) >= 0.7 * len(kinds)


def test_it_hangs_on_seed_and_step_alone() -> None:
    one, other = EpochBatchOrder(ALIKE, BATCH, seed=1), EpochBatchOrder(ALIKE, BATCH, seed=1)
    later = [one.batch_at(step) for step in range(40)]
    assert other.batch_at(31) == later[31] and other.batch_at(2) == later[2]
    assert [EpochBatchOrder(ALIKE, BATCH, seed=2).batch_at(step) for step in range(40)] != later
    epoch = one.epoch_steps
    assert later[:epoch] != later[epoch : 2 * epoch]


def test_few_examples_make_short_steps() -> None:
    order = EpochBatchOrder(["a"], BATCH, seed=0)
    assert order.epoch_steps == 1 and order.batch_at(7) == [0]
