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
from stages.tune.job import ADAMW8, PAGED_ADAMW8

PACKS = "support_avx512bf16_for_cpu"
"""Attribute of a bitsandbytes layer: whether it packs its weights for this CPU."""
WARMUP = 0.03
"""Share of the steps for the warm-up of the learning rate."""
LOSS_SCALE = 1024.0
"""Factor of the loss of a half in fp16, whose smallest gradients would else be rounded to zero."""
MAX_SKIPPED = 10
"""Steps in a row that may be skipped because a gradient is infinite."""
MAX_NORM = 1.0
"""Gradients are clipped to this norm."""


def optimizer_of(name: str, trained: Sequence[nn.Parameter], rate: float) -> torch.optim.Optimizer:
    """Return an optimizer of these parameters."""
    if name in (ADAMW8, PAGED_ADAMW8):
        optimizers = importlib.import_module("bitsandbytes.optim")
        # Moments can be paged to the host only from a GPU.
        paged = name == PAGED_ADAMW8 and trained[0].device.type == "cuda"
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
        """Examples per forward pass."""
        self._scale = LOSS_SCALE if half.dtype == torch.float16 else 1.0
        self._skipped = 0

    def step(self, examples: Sequence[TrainingExample], rate: float) -> float:
        """Take one step on these examples, and return their mean loss per token. Raises MemoryError
        if not even one example fits."""
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
                "the loss is infinite or NaN",
                hint="Run it again with a smaller --lr, into another --out",
            )
        if self._gradients_are_finite():
            nn.utils.clip_grad_norm_(self._trained, MAX_NORM)
            for group in self._optimizer.param_groups:
                group["lr"] = rate
            self._optimizer.step()
        return loss

    def _gradients_are_finite(self) -> bool:
        """Undo the scale of the gradients. Return whether all are finite; a step with others is
        skipped. Raises UsageError after MAX_SKIPPED skipped steps in a row."""
        if self._scale == 1.0:
            return True
        gradients = [each.grad for each in self._trained if each.grad is not None]
        for gradient in gradients:
            gradient /= self._scale
        if all(bool(gradient.isfinite().all()) for gradient in gradients):
            self._skipped = 0
            return True
        self._skipped += 1
        if self._skipped == MAX_SKIPPED:
            raise UsageError(
                f"gradients in fp16 were infinite in {MAX_SKIPPED} steps in a row",
                hint="Run it again with a smaller --lr, or with --precision fp32 or nf4",
            )
        return False

    def _gradients(self, examples: Sequence[TrainingExample]) -> float:
        tokens, total = sum(len(example.ids) for example in examples), 0.0
        for some in group_batches(examples, self._rows):
            loss = loss_of(self._half, self._processor, some) / tokens
            (loss * self._scale).backward()
            total += float(loss.detach())
        return total


def keep_differentiable(half: Any) -> None:
    """Keep 4-bit layers in a form that supports gradients. On a CPU with AVX-512 BF16, bitsandbytes
    repacks their weights in the first pass without training, and no gradient passes them
    afterwards."""
    for module in half.modules():
        if hasattr(module, PACKS):
            setattr(module, PACKS, False)


def without_gradients(half: Any, function: Callable[[], Any]) -> Any:
    """Return the result of a function that runs the half in evaluation mode."""
    half.eval()
    try:
        with torch.inference_mode():
            return function()
    finally:
        half.train()
