"""Runs training steps, and turns examples into a half's inputs and target tokens.

The learning rate rises over the first steps and then falls linearly to zero. A step that runs out
of memory is repeated with fewer examples at once, which sums the same gradients.

In the inputs, the caption follows the prompt, as if the half had generated it, without its last
token. The target at a position is the token that comes next. Examples are batched where their
prompts have equal lengths. Padding of shorter captions comes at the end, where no earlier position
sees it.
"""

import importlib
import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy, pad

from artifacts.errors import Diverged, UsageError
from stages.decode.chunked_prefill import relative_difference, tolerance
from stages.decode.prompts import append_ids, end_ids_of
from stages.decode.scoring import ForcedCaption, forced_logits, is_bidirectional, last_logits
from stages.memory.oom_retry import catch_oom, smaller
from stages.models.halves.features import Features
from stages.models.halves.generate import forward
from stages.models.halves.records import FeatureRecord
from stages.models.processors.prepare import answer_ids, drop_end_token, full_answer_ids, rebuild
from stages.models.processors.processor_calls import text_ids
from stages.models.protocols import Half, Processor
from stages.process.events import EventReporter
from stages.tune import ADAMW8, PAGED_ADAMW8

IGNORED = -100
"""Target at positions that do not count."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingExample:
    """One example. Its features stay in the store, because all of them would take more memory than
    the half."""

    read: Callable[[], FeatureRecord]
    """Reads its features."""
    prompt: str
    caption: str
    ids: torch.Tensor
    """Tokens of the caption and its end token, [tokens]."""
    joins_with: Hashable
    """Equal for examples that can share a batch."""
    is_cut: bool = False
    """Whether it has no end."""

    @property
    def row(self) -> FeatureRecord:
        return self.read()


def make_example(
    half: Half,
    processor: Processor,
    read: Callable[[], FeatureRecord],
    prompt: str,
    caption: str,
    is_cut: bool = False,
    *,
    number: int,
) -> TrainingExample:
    """Return a tokenized example, without the end token. `number`: its own among the examples that
    are batched together, the same in a resumed training."""
    row = read()
    tokens = answer_ids if is_cut else full_answer_ids
    ids = torch.tensor(tokens(processor, caption), dtype=torch.long)
    inputs = drop_end_token(half, rebuild(processor, [row], [prompt]))
    return TrainingExample(
        read=read,
        prompt=prompt,
        caption=caption,
        ids=ids,
        joins_with=(row.joins_with(number), text_ids(inputs).shape[1]),
        is_cut=is_cut,
    )


def with_end_token(example: TrainingExample, token: int) -> TrainingExample:
    """Return the example with an end token after its caption. A cut one gets none."""
    if example.is_cut:
        return example
    return replace(example, ids=torch.cat([example.ids, torch.tensor([token])]))


def group_batches(
    examples: Sequence[TrainingExample], rows: int
) -> Iterator[list[TrainingExample]]:
    """Yield batches of at most `rows` examples, longest captions first."""
    groups: dict[Hashable, list[TrainingExample]] = {}
    for example in examples:
        groups.setdefault(example.joins_with, []).append(example)
    for group in groups.values():
        ranked = sorted(group, key=lambda example: len(example.ids), reverse=True)
        yield from (ranked[at : at + rows] for at in range(0, len(ranked), rows))


def loss_of(
    half: Half,
    processor: Processor,
    examples: Sequence[TrainingExample],
    *,
    per_caption: bool = False,
) -> torch.Tensor:
    """Return the summed loss of all tokens of these captions, or of each caption [examples] with
    `per_caption`. Their prompts have equal lengths."""
    ids = [example.ids for example in examples]
    length = max(map(len, ids))
    caption_ids = torch.stack([pad(row, (0, length - len(row))) for row in ids])
    targets = [pad(row, (0, length - len(row)), value=IGNORED) for row in ids]
    logits = logits_of(half, processor, examples, caption_ids[:, :-1], length)
    expected = torch.stack(targets).to(logits.device)
    losses = cross_entropy(
        logits.flatten(0, 1).float(),
        expected.flatten(),
        ignore_index=IGNORED,
        reduction="none" if per_caption else "sum",
    )
    return losses.view(len(examples), -1).sum(1) if per_caption else losses


def logits_of(
    half: Half,
    processor: Processor,
    examples: Sequence[TrainingExample],
    caption_ids: torch.Tensor,
    count: int,
) -> torch.Tensor:
    """Return the logits [examples, count, vocabulary] at the last `count` positions. `caption_ids`
    [examples, tokens] follow the prompts."""
    rows = [example.row for example in examples]
    inputs = rebuild(processor, rows, [example.prompt for example in examples])
    inputs = append_ids(half, drop_end_token(half, inputs), caption_ids)
    features = Features.of(rows)
    with last_logits(half, count) as taken:
        forward(half, inputs, features, use_cache=False)
    return taken[-1][:, -count:]


def check_trainable(half: Half, processor: Processor, example: TrainingExample) -> None:
    """Raise UsageError for a half that one forward pass cannot train: its output differs from
    `generate`, or it sees later tokens."""
    caption = ForcedCaption(example.row, example.prompt, example.ids[None])
    problem = "cannot be trained on captions"
    if is_bidirectional(half, processor, caption):
        raise UsageError(
            f"{type(half).__name__} {problem}: its attention to text is bidirectional",
            hint="Choose another model: docs/tune.md",
        )
    expected = forced_logits(half, processor, caption)
    with torch.no_grad():
        logits = logits_of(half, processor, [example], example.ids[None], len(example.ids) + 1)
    if relative_difference([logits[0].float().cpu()], [expected]) > tolerance(half.dtype):
        raise UsageError(
            f"{type(half).__name__} {problem}: a forward pass differs from generation",
            hint="Please report this model; docs/tune.md lists trainable models",
        )


def end_token_of(half: Half, processor: Processor, examples: Sequence[TrainingExample]) -> int:
    """Return the end token of captions. If the half stops at several tokens, return the one that is
    most likely after these captions."""
    ends, whole = end_ids_of(half), [candidate for candidate in examples if not candidate.is_cut]
    if len(ends) == 1:
        return ends[0]
    likely = torch.zeros(len(ends))
    for example in (whole or examples)[:4]:
        with torch.no_grad():
            last = logits_of(half, processor, [example], example.ids[None], 1)[0, -1]
        likely += last.float().log_softmax(-1)[ends].cpu()
    return ends[int(likely.argmax())]


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


def refuse_not_finite(number: float, of: str) -> None:
    """Refuse NaN and infinity, of a loss or a gradient. Raises Diverged."""
    if not math.isfinite(number):
        raise Diverged(
            f"{of} is infinite or NaN",
            hint="Run it again with a smaller --lr or with --precision fp32 (and, of penstock "
            "tune, into another --out)",
        )


@dataclass(slots=True)
class Trainer:
    """A training in progress."""

    half: Half
    processor: Processor
    trained: Sequence[nn.Parameter]
    optimizer: torch.optim.Optimizer
    report: EventReporter
    rows: int
    """Examples per forward pass."""
    skipped: int = 0
    """Steps in a row whose gradients were infinite."""

    @property
    def scale(self) -> float:
        return LOSS_SCALE if self.half.dtype == torch.float16 else 1.0

    def step(self, examples: Sequence[TrainingExample], rate: float, number: int) -> float:
        """Take the step of this number, and return the mean loss per token of its examples. Raises
        MemoryError if not even one example fits, and Diverged for numbers that are not finite."""
        while True:
            self.optimizer.zero_grad(set_to_none=True)
            losses, message = catch_oom(lambda: self._gradients(examples))
            if message is None:
                break
            if self.rows == 1:
                raise MemoryError(message)
            failed, self.rows = self.rows, smaller(self.rows)
            self.report.batch_shrunk(self.rows, failed=failed, error=message[:200])
        refuse_not_finite(loss := losses.pop(), f"the loss of step {number}")
        if self._gradients_are_finite():
            norm = float(nn.utils.clip_grad_norm_(self.trained, MAX_NORM))
            refuse_not_finite(norm, f"the gradient of step {number}")
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()
        return loss

    def _gradients_are_finite(self) -> bool:
        """Undo the scale of the gradients. Return whether all are finite; a step with others is
        skipped. Raises Diverged after MAX_SKIPPED skipped steps in a row."""
        if self.scale == 1.0:
            return True
        gradients = [parameter.grad for parameter in self.trained if parameter.grad is not None]
        for gradient in gradients:
            gradient /= self.scale
        if all(bool(gradient.isfinite().all()) for gradient in gradients):
            self.skipped = 0
            return True
        self.skipped += 1
        if self.skipped == MAX_SKIPPED:
            raise Diverged(
                f"gradients in fp16 were infinite in {MAX_SKIPPED} steps in a row",
                hint="Run it again with a smaller --lr, or with --precision fp32 or nf4",
            )
        return False

    def _gradients(self, examples: Sequence[TrainingExample]) -> float:
        tokens, total = sum(len(example.ids) for example in examples), 0.0
        for some in group_batches(examples, self.rows):
            loss = loss_of(self.half, self.processor, some) / tokens
            (loss * self.scale).backward()
            total += float(loss.detach())
        return total


def keep_differentiable(half: Half) -> None:
    """Keep 4-bit layers in a form that supports gradients. On a CPU with AVX-512 BF16, bitsandbytes
    repacks their weights in the first pass without training, and no gradient passes them
    afterwards."""
    for module in half.modules():
        if hasattr(module, PACKS):
            setattr(module, PACKS, False)


def without_gradients(half: Half, function: Callable[[], Any]) -> Any:
    """Return the result of a function that runs the half in evaluation mode."""
    half.eval()
    try:
        with torch.inference_mode():
            return function()
    finally:
        half.train()
