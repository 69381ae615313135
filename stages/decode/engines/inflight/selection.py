"""Selects the next token of every row of a step, in one call for all rows with the same settings.

How it works:

1. A sequence brings the logits processors that `generate` would call for it. Rows whose processors
   have the same types and settings are a group, and the processors of its first row serve them all.
2. All rows end at the last column of one tensor of tokens, so that transformers' processors see
   rows of different lengths at once. Before a row's first token stands NO_TOKEN, which equals none.
3. What a row alone has is applied by row: its random generator, and the mask of its schema or of
   its refused phrases. The host computes these masks while the device computes the step.
4. Processors of other types are called row by row.

The tokens are those of each row alone. Nothing is read from the device. On a GPU each group
computes all rows, so that the rounding of a row does not depend on the number of its neighbours.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from artifacts.errors import UsageError
from stages.decode.confidence import likeliest
from stages.decode.engines.inflight.pool_shape import columns_for
from stages.decode.generate_kwargs import PresencePenalty, SeededSampler, sampled_only
from stages.decode.host_masks import HostMaskProcessor, Masks

NO_TOKEN = 1 << 60
"""Stands before a row's first token: larger than any token, and it equals none."""
SETTINGS: Mapping[type[Any], Callable[[Any], Hashable]] = {
    RepetitionPenaltyLogitsProcessor: lambda made: made.penalty,
    NoRepeatNGramLogitsProcessor: lambda made: made.ngram_size,
    SequenceBiasLogitsProcessor: lambda made: tuple(made.sequence_bias.items()),
    NoBadWordsLogitsProcessor: lambda made: tuple(made.sequence_bias.items()),
    TemperatureLogitsWarper: lambda made: made.temperature,
    TopKLogitsWarper: lambda made: made.top_k,
    TopPLogitsWarper: lambda made: made.top_p,
    MinPLogitsWarper: lambda made: made.min_p,
    PresencePenalty: lambda made: made.penalty,
}
"""Class of a processor that serves many rows at once → its settings. Processors of another class
belong to their row."""


class RowRules:
    """How the tokens of one sequence are selected."""

    def __init__(
        self,
        processors: Sequence[Any] = (),
        *,
        may_fail: bool = False,
        fault: UsageError | None = None,
    ) -> None:
        """`may_fail`: whether an error of a processor ends this sequence alone."""
        self.processors = [_whole_prompt(each) for each in processors]
        self.settings: Hashable = tuple(
            (type(each), SETTINGS.get(type(each), lambda _: None)(each)) for each in self.processors
        )
        self.may_fail = may_fail
        self.fault = fault
        """The error for settings that cannot be applied."""
        self.masks = [
            each.new_row() if isinstance(each, HostMaskProcessor) else None
            for each in self.processors
        ]
        """What the masks of each processor keep of this row."""


def _whole_prompt(processor: Any) -> Any:
    """Return a repetition penalty without the padding of its prompt, which has none in slots."""
    if type(processor) is RepetitionPenaltyLogitsProcessor and torch.is_tensor(
        processor.prompt_ignore_length
    ):
        return RepetitionPenaltyLogitsProcessor(processor.penalty)
    return processor


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """The rows of one call."""

    members: Mapping[int, RowRules]
    """Row of the scores → its rules. Other rows do not matter."""
    ids: torch.Tensor
    """All tokens of the rows, of shape [rows, columns]."""
    new: torch.Tensor
    """The generated ones among them, of the same shape."""
    lengths: Mapping[int, int]
    """Row → number of its tokens."""
    generated: Mapping[int, Callable[[], Sequence[int]]]
    """Row → function that returns its generated tokens, which are on the host."""

    def scores_of(self, shared: Sequence[Any], scores: torch.Tensor) -> torch.Tensor:
        """Return processed scores, of shape [rows, vocabulary]. `shared` are the processors of one
        member."""
        for at, processor in enumerate(shared):
            if isinstance(processor, PresencePenalty):
                scores = processor.lowered(self.new, scores)
            elif isinstance(processor, SeededSampler):
                drawn = {row: each.processors[at] for row, each in self.members.items()}
                generators = {row: one.generators(scores.device)[0] for row, one in drawn.items()}
                scores = sampled_only(scores, generators)
            elif isinstance(processor, HostMaskProcessor):
                scores = self._masked(at, processor, scores)
            elif type(processor) in SETTINGS:
                scores = processor(self.ids, scores)
            else:
                scores = self._row_by_row(at, scores)
        return scores

    def _masked(self, at: int, processor: Any, scores: torch.Tensor) -> torch.Tensor:
        """Apply the masks of each row. A row that cannot go on ends; its token is discarded."""
        members = {row: rules for row, rules in self.members.items() if rules.fault is None}
        if not members:
            return scores
        tokens = [self.generated[row]() for row in members]
        kept = [rules.masks[at] for rules in members.values()]
        masks: Masks = processor.masks_of(kept, tokens, scores.shape[1])
        for place, fault in masks.faults.items():
            rules = [*members.values()][place]
            if not rules.may_fail:
                raise fault
            rules.fault = fault
        return masks.at([*members], len(scores)).apply(scores)

    def _row_by_row(self, at: int, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.clone()
        for row, rules in self.members.items():
            ids = self.ids[row : row + 1, -self.lengths[row] :]
            scores[row] = rules.processors[at](ids, scores[row : row + 1])[0]
        return scores


@dataclass(kw_only=True, slots=True)
class Group:
    """The rows with the same settings."""

    processors: Sequence[Any]
    mask: torch.Tensor
    """Which rows of a step belong to it, of shape [rows]."""
    members: dict[int, RowRules] = field(default_factory=dict)


class TokenSelection:
    """Selects the tokens of one pool. The tokens of all rows end at the last column of a tensor."""

    def __init__(self, rows: int, *, whole: bool | None = None) -> None:
        """`rows` are those of a step. `whole`: whether a group computes all of them; None: on a
        GPU."""
        self._rows, self._whole = rows, whole
        self._groups: dict[Hashable, Group] = {}
        self._lengths = [0] * rows
        self._ids = torch.zeros(2, rows, 0, dtype=torch.long)
        """All tokens and the generated ones, of shape [2, rows, columns]."""

    @torch.inference_mode()
    def first(self, rules: RowRules, ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Return the first token of a sequence, of shape [1]. `ids` is its prompt, of shape [1,
        tokens], `logits` are of shape [1, vocabulary]."""
        group = self._groups.get(rules.settings)
        rows = Rows(
            members={0: rules},
            ids=ids,
            new=ids[:, :0],
            lengths={0: ids.shape[1]},
            generated={0: lambda: ()},
        )
        return likeliest(rows.scores_of(group.processors if group else rules.processors, logits))

    @torch.inference_mode()
    def put(
        self, slot: int, rules: RowRules, ids: torch.Tensor, token: torch.Tensor, most: int
    ) -> None:
        """Begin a sequence of at most `most` tokens in a slot, with its prompt and first token."""
        self.clear(slot)
        if not rules.processors:
            return
        if most > self._ids.shape[-1]:
            wider = self._ids.new_full(
                (2, self._rows, columns_for(most)), NO_TOKEN, device=ids.device
            )
            wider[..., wider.shape[-1] - self._ids.shape[-1] :] = self._ids
            self._ids = wider
        if rules.settings not in self._groups:
            mask = torch.zeros(self._rows, dtype=torch.bool, device=ids.device)
            self._groups[rules.settings] = Group(processors=rules.processors, mask=mask)
        group = self._groups[rules.settings]
        group.members[slot], group.mask[slot] = rules, True
        self._lengths[slot] = ids.shape[1] + 1
        self._ids[:, slot] = NO_TOKEN
        self._ids[0, slot, -ids.shape[1] - 1 : -1] = ids[0]
        self._ids[:, slot, -1] = token

    @torch.inference_mode()
    def clear(self, slot: int) -> None:
        """End the sequence of a slot."""
        for settings, group in [*self._groups.items()]:
            if group.members.pop(slot, None) is not None:
                group.mask[slot] = False
            if not group.members:
                del self._groups[settings]

    @torch.inference_mode()
    def select(
        self, logits: torch.Tensor, generated: Callable[[int], Sequence[int]]
    ) -> torch.Tensor:
        """Return the next token of each row, of shape [rows]. `logits` are of shape [rows,
        vocabulary] and stay as they are. `generated` returns the generated tokens of a slot."""
        tokens = likeliest(logits)
        whole = logits.device.type != "cpu" if self._whole is None else self._whole
        for group in self._groups.values():
            slots = sorted(group.members)
            places = slots if whole else range(len(slots))
            ids, new = self._ids if whole else self._ids[:, slots]
            rows = Rows(
                members={at: group.members[slot] for at, slot in zip(places, slots, strict=True)},
                ids=ids,
                new=new,
                lengths={at: self._lengths[s] for at, s in zip(places, slots, strict=True)},
                generated={at: partial(generated, s) for at, s in zip(places, slots, strict=True)},
            )
            found = likeliest(rows.scores_of(group.processors, logits if whole else logits[slots]))
            if whole:
                tokens = torch.where(group.mask, found, tokens)
            else:
                tokens[slots] = found
        if self._groups:
            self._ids[..., :-1] = self._ids[..., 1:].clone()
            self._ids[..., -1] = tokens
            self._lengths = [length + 1 for length in self._lengths]
        return tokens
