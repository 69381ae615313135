"""Runs training steps.

The learning rate rises over the first steps and then falls linearly to zero. A step that runs out
of memory is repeated with fewer examples at once, which sums the same gradients.
"""

import importlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from artifacts.errors import UsageError
from stages.memory.oom_retry import catch_oom, smaller
from stages.process.report import EventReporter
from stages.tune.examples import TrainingExample, group_batches, loss_of
from stages.tune.job import ADAMW8

PACKS = "support_avx512bf16_for_cpu"
"""Field of a layer of bitsandbytes: whether it packs its weights for this CPU."""
WARMUP = 0.03
"""Share of the steps in which the learning rate rises."""
MAX_NORM = 1.0
"""Longest gradient; a longer one is made so long."""


def optimizer_of(name: str, trained: Sequence[nn.Parameter], rate: float) -> torch.optim.Optimizer:
    """Return an optimizer of these numbers."""
    if name == ADAMW8:
        optimizers = importlib.import_module("bitsandbytes.optim")
        paged = trained[0].device.type == "cuda"  # only there can moments leave for the host
        kind = optimizers.PagedAdamW8bit if paged else optimizers.AdamW8bit
        made: torch.optim.Optimizer = kind(trained, lr=rate, weight_decay=0.0)
        return made
    return torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)


def learning_rate_at(step: int, steps: int, peak_rate: float) -> float:
    """Return the learning rate of a step; steps count from 0."""
    warm = max(1, round(WARMUP * steps))
    if step < warm:
        return peak_rate * (step + 1) / warm
    return peak_rate * (steps - step) / max(1, steps - warm)


class Trainer:
    """A training in progress."""

    def __init__(
        self,
        half: Any,
        processor: Any,
        trained: Sequence[nn.Parameter],
        optimizer: torch.optim.Optimizer,
        report: EventReporter,
        rows: int,
    ) -> None:
        self._half = half
        self._processor = processor
        self._trained = trained
        self._optimizer = optimizer
        self._report = report
        self._rows = rows
        """Examples that go through the half at once."""

    def step(self, examples: Sequence[TrainingExample], rate: float) -> float:
        """Make one step by these examples, and return their mean loss of a token. Raises what an
        allocator raises, where not even one fits."""
        while True:
            self._optimizer.zero_grad(set_to_none=True)
            found, message = catch_oom(lambda: self._gradients(examples))
            if message is None:
                break
            if self._rows == 1:
                raise MemoryError(message)
            failed, self._rows = self._rows, smaller(self._rows)
            self._report.batch_shrunk(self._rows, failed=failed, error=message[:200])
        if not math.isfinite(loss := found.pop()):
            raise UsageError(
                "the loss is no number any more",
                hint="Run it again with a smaller --lr, into another --out",
            )
        nn.utils.clip_grad_norm_(self._trained, MAX_NORM)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        return loss

    def _gradients(self, examples: Sequence[TrainingExample]) -> float:
        tokens, total = sum(len(example.ids) for example in examples), 0.0
        for some in group_batches(examples, self._rows):
            loss = loss_of(self._half, self._processor, some) / tokens
            loss.backward()
            total += float(loss.detach())
        return total


def keep_differentiable(half: Any) -> None:
    """Have layers in 4 bit keep the form that gradients go through. On a CPU that has the words
    for it, bitsandbytes packs their weights in another at the first pass that is not trained, and
    no gradient passes them ever after."""
    for module in half.modules():
        if hasattr(module, PACKS):
            setattr(module, PACKS, False)


def enable_checkpointing(half: Any) -> None:
    """Have the half compute the activations of its layers again for the backward pass."""
    half.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def without_gradients(half: Any, function: Callable[[], Any]) -> Any:
    """Return the result of a function, of a half that is not trained meanwhile."""
    half.eval()
    try:
        with torch.inference_mode():
            return function()
    finally:
        half.train()
