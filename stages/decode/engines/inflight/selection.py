"""Selects the next token of every row of a step, in one call for all rows with the same settings.

How it works:

1. A sequence brings the logits processors that `generate` would call for it. Rows whose processors
   have the same types and settings are a group, and the processors of its first row serve them all.
2. All rows end at the last column of one tensor of tokens, so that transformers' processors see
   rows of different lengths at once. Before a row's first token stands NO_TOKEN, which equals none.
3. What a row alone has is applied by row: its random generator, and the mask of its schema or of
   its refused phrases. The host computes these masks while the device computes the step.
4. Other processors are called row by row.

The tokens are those of each row alone. Nothing is read from the device. On a GPU each group
computes all rows, so that the rounding of a row does not depend on the number of its neighbours.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from artifacts.errors import UsageError
from stages.decode.confidence import likeliest
from stages.decode.constraint import HostMaskProcessor, Masks
from stages.decode.engines.inflight.pool_shape import columns_for
from stages.decode.generate_kwargs import PresencePenalty, SeededSampler, sampled_only

NO_TOKEN = 1 << 60
"""Stands before a row's first token: larger than any token, and it equals none."""
SETTINGS: Mapping[type[Any], Callable[[Any], Hashable]] = {
    RepetitionPenaltyLogitsProcessor: lambda one: (
        one.penalty if one.prompt_ignore_length is None else None
    ),
    NoRepeatNGramLogitsProcessor: lambda one: one.ngram_size,
    NoBadWordsLogitsProcessor: lambda one: tuple(one.sequence_bias),
    TemperatureLogitsWarper: lambda one: one.temperature,
    TopKLogitsWarper: lambda one: one.top_k,
    TopPLogitsWarper: lambda one: one.top_p,
    MinPLogitsWarper: lambda one: one.min_p,
    PresencePenalty: lambda one: one.penalty,
}
"""Class of a processor that serves many rows at once → its settings; None: it serves its row."""


class RowRules:
    """How the tokens of one sequence are selected."""

    def __init__(
        self,
        processors: Iterable[Any] = (),
        *,
        may_fail: bool = False,
        fault: UsageError | None = None,
    ) -> None:
        """`may_fail`: whether an error of a processor ends this sequence alone."""
        self.processors = [*processors]
        self.settings: Hashable = tuple(
            (type(one), SETTINGS.get(type(one), lambda _: None)(one)) for one in self.processors
        )
        self.may_fail = may_fail
        self.fault = fault
        """The error for settings that cannot be applied."""
        self.masked = [
            one.new_row() if isinstance(one, HostMaskProcessor) else None for one in self.processors
        ]
        """What each processor with masks keeps of this row."""
        self.slot = -1
        self.tokens = 0
        """Number of its tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """The rows of one call."""

    members: Mapping[int, RowRules]
    """Row of the scores → its rules. Other rows do not matter."""
    ids: torch.Tensor
    """All tokens of the rows, of shape [rows, columns]."""
    new: torch.Tensor
    """The generated ones among them, of the same shape."""
    generated: Callable[[int], Sequence[int]]
    """Function that returns the generated tokens of a slot, which are on the host."""

    def scores_of(self, shared: Sequence[Any], scores: torch.Tensor) -> torch.Tensor:
        """Return processed scores, of shape [rows, vocabulary]. `shared` are the processors of one
        member."""
        for at, processor in enumerate(shared):
            if isinstance(processor, SeededSampler):
                drawn = {row: rules.processors[at] for row, rules in self.members.items()}
                generators = {row: one.generators(scores.device)[0] for row, one in drawn.items()}
                scores = sampled_only(scores, generators)
            elif isinstance(processor, HostMaskProcessor):
                scores = self._masked(at, processor, scores)
            elif SETTINGS.get(type(processor), lambda _: None)(processor) is None:
                scores = self._row_by_row(at, scores)
            elif isinstance(processor, PresencePenalty):
                scores = processor.lowered(self.new, scores)
            else:
                scores = processor(self.ids, scores)
        return scores

    def _masked(self, at: int, processor: Any, scores: torch.Tensor) -> torch.Tensor:
        """Apply the masks of each row. A row that cannot go on ends; its token is discarded."""
        rows = [row for row, rules in self.members.items() if rules.fault is None]
        if not rows:
            return scores
        members = [self.members[row] for row in rows]
        tokens = [self.generated(rules.slot) for rules in members]
        kept = [rules.masked[at] for rules in members]
        masks: Masks = processor.masks_of(kept, tokens, scores.shape[1])
        for place, fault in masks.faults.items():
            if not members[place].may_fail:
                raise fault
            members[place].fault = fault
        return masks.at(rows, len(scores)).apply(scores)

    def _row_by_row(self, at: int, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.clone()
        for row, rules in self.members.items():
            ids = self.ids[row : row + 1, -rules.tokens :]
            scores[row] = rules.processors[at](ids, scores[row : row + 1])[0]
        return scores


@dataclass(kw_only=True, slots=True)
class RowGroup:
    """The rows with the same settings."""

    processors: Sequence[Any]
    mask: torch.Tensor
    """Which rows of a step belong to it, of shape [rows]."""
    members: dict[int, RowRules] = field(default_factory=dict)
    """Slot → rules."""


class TokenSelection:
    """Selects the tokens of one pool."""

    def __init__(self, rows: int, *, whole: bool | None = None) -> None:
        """`rows` are those of a step. `whole`: whether a group computes all of them; None: on a
        GPU."""
        self._rows, self._whole = rows, whole
        self._groups: dict[Hashable, RowGroup] = {}
        self._ids = torch.zeros(2, rows, 0, dtype=torch.long)
        """All tokens and the generated ones, of shape [2, rows, columns]."""

    @torch.inference_mode()
    def first(self, rules: RowRules, ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Return the first token of a sequence, of shape [1]. `ids` is its prompt, of shape [1,
        tokens], `logits` are of shape [1, vocabulary]."""
        rules.tokens = ids.shape[1]
        rows = Rows(members={0: rules}, ids=ids, new=ids[:, :0], generated=lambda _: ())
        group = self._groups.get(rules.settings)
        return likeliest(rows.scores_of(group.processors if group else rules.processors, logits))

    @torch.inference_mode()
    def put(
        self, slot: int, rules: RowRules, ids: torch.Tensor, token: torch.Tensor, most: int
    ) -> None:
        """Begin a sequence of at most `most` tokens in a slot, with its prompt and first token."""
        if not rules.processors:
            return
        if most > self._ids.shape[-1]:
            wider = ids.new_full((2, self._rows, columns_for(most)), NO_TOKEN)
            wider[..., wider.shape[-1] - self._ids.shape[-1] :] = self._ids
            self._ids = wider
        if (group := self._groups.get(rules.settings)) is None:
            mask = torch.zeros(self._rows, dtype=torch.bool, device=ids.device)
            group = self._groups[rules.settings] = RowGroup(processors=rules.processors, mask=mask)
        group.members[slot], group.mask[slot] = rules, True
        rules.slot, rules.tokens = slot, ids.shape[1] + 1
        self._ids[:, slot] = NO_TOKEN
        self._ids[0, slot, -rules.tokens : -1] = ids[0]
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
            slots = [*group.members]
            ids, new = self._ids if whole else self._ids[:, slots]
            members = group.members if whole else dict(enumerate(group.members.values()))
            rows = Rows(members=members, ids=ids, new=new, generated=generated)
            found = likeliest(rows.scores_of(group.processors, logits if whole else logits[slots]))
            if whole:
                tokens = torch.where(group.mask, found, tokens)
            else:
                tokens[slots] = found
            for rules in group.members.values():
                rules.tokens += 1
        if self._groups:
            self._ids[..., :-1] = self._ids[..., 1:].clone()
            self._ids[..., -1] = tokens
        return tokens
