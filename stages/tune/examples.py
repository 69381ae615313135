"""Turns an example into a half's inputs and the target token at each position.

The caption follows the prompt, as if the half had generated it, without its last token. The target
at a position is the token that comes next. Examples are batched where their prompts have equal
lengths. Padding of shorter captions comes at the end, where no earlier position sees it.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn.functional import cross_entropy, pad

from artifacts.errors import UsageError
from stages.decode.prefill_options import relative_difference, tolerance
from stages.decode.prompts import append_ids, end_ids_of
from stages.decode.teacher_forcing import (
    ForcedCaption,
    forced_logits,
    is_bidirectional,
    last_logits,
)
from stages.models.halves.features import Features
from stages.models.halves.inject_features import forward
from stages.models.halves.records import FeatureRecord, merge_blank, merge_rows
from stages.models.processors.answers import answer_ids, whole_answer_ids
from stages.models.processors.calling import text_ids
from stages.models.processors.prepare import drop_end_token, rebuild

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
    half: Any,
    processor: Any,
    read: Callable[[], FeatureRecord],
    prompt: str,
    caption: str,
    is_cut: bool = False,
) -> TrainingExample:
    """Return a tokenized example, without the end token."""
    row = read()
    tokens = answer_ids if is_cut else whole_answer_ids
    ids = torch.tensor(tokens(processor, caption), dtype=torch.long)
    inputs = drop_end_token(half, rebuild(processor, [row], [prompt]))
    return TrainingExample(
        read=read,
        prompt=prompt,
        caption=caption,
        ids=ids,
        joins_with=(row.joins_with(), text_ids(inputs).shape[1]),
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
    half: Any, processor: Any, examples: Sequence[TrainingExample], *, each: bool = False
) -> torch.Tensor:
    """Return the summed loss of all tokens of these captions, or with `each` those of each caption
    [examples]. Their prompts have equal lengths."""
    length = max(len(example.ids) for example in examples)
    caption_ids = torch.stack([pad(each.ids, (0, length - len(each.ids))) for each in examples])
    targets = [pad(each.ids, (0, length - len(each.ids)), value=IGNORED) for each in examples]
    logits = logits_of(half, processor, examples, caption_ids[:, :-1], length)
    expected = torch.stack(targets).to(logits.device)
    losses = cross_entropy(
        logits.flatten(0, 1).float(),
        expected.flatten(),
        ignore_index=IGNORED,
        reduction="none" if each else "sum",
    )
    return losses.view(len(examples), -1).sum(1) if each else losses


def logits_of(
    half: Any,
    processor: Any,
    examples: Sequence[TrainingExample],
    caption_ids: torch.Tensor,
    count: int,
) -> torch.Tensor:
    """Return the logits [examples, count, vocabulary] at the last `count` positions. `caption_ids`
    [examples, tokens] follow the prompts."""
    rows = [example.row for example in examples]
    inputs = rebuild(processor, rows, [example.prompt for example in examples])
    inputs = append_ids(half, drop_end_token(half, inputs), caption_ids)
    features = Features(merge_rows(rows), rows[0].needs, merge_blank(rows))
    with last_logits(half, count) as taken:
        forward(half, inputs, features, use_cache=False)
    return taken[-1][:, -count:]


def check_trainable(half: Any, processor: Any, example: TrainingExample) -> None:
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
        found = logits_of(half, processor, [example], example.ids[None], len(example.ids) + 1)
    if relative_difference([found[0].float().cpu()], [expected]) > tolerance(half.dtype):
        raise UsageError(
            f"{type(half).__name__} {problem}: a forward pass differs from generation",
            hint="Please report this model; docs/tune.md lists trainable models",
        )


def end_token_of(half: Any, processor: Any, examples: Sequence[TrainingExample]) -> int:
    """Return the end token of captions. If the half stops at several tokens, return the one that is
    most likely after these captions."""
    ends, whole = end_ids_of(half), [each for each in examples if not each.is_cut]
    if len(ends) == 1:
        return ends[0]
    likely = torch.zeros(len(ends))
    for example in (whole or examples)[:4]:
        with torch.no_grad():
            last = logits_of(half, processor, [example], example.ids[None], 1)[0, -1]
        likely += last.float().log_softmax(-1)[ends].cpu()
    return ends[int(likely.argmax())]
