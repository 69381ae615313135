"""Computes the log probability of each label after a prompt, from one prefill of a chunk.

How it works:

1. The prompt up to its last media token is prefilled once for all probes of a chunk, and each goes
   on from a copy of that KV cache. So its bytes depend on nothing but its own key.
2. The logits after the prompt have the first token of every label. Where labels have several
   tokens, their beginnings form a tree: a row of one more pass for each that begins no other one.
3. A label's log probability is the sum over its tokens. If one label begins another ("red", "red
   and blue"), the token that ends a turn belongs to all of them.
4. The first probe of a process is also computed by `generate` over the whole prompt. A half whose
   prefix depends on what follows, or that has no prefix to share, is given whole prompts: one pass
   for each beginning, or one for each token if the half would see what follows.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch

from artifacts.texts.questions import refuse_same
from stages.answer import ROWS, Window
from stages.decode.chunked_prefill import PrefillOptions, relative_difference, tolerance
from stages.decode.engines.inflight.cache_layers import UnsupportedCacheError
from stages.decode.engines.inflight.prefill import ONE_TOKEN, PrefilledSequence, SharedPrefix
from stages.decode.generation import SamplingParams
from stages.decode.prompts import check_context, end_ids_of, prompts_for
from stages.decode.scoring import (
    ForcedCaption,
    forced_logits,
    forced_logits_stepwise,
    is_bidirectional,
)
from stages.models.halves.features import Features
from stages.models.halves.records import FeatureRecord
from stages.models.processors.blank_clips import Clip
from stages.models.processors.prepare import full_answer_ids
from stages.models.processors.time_windows import cut_window, joined
from stages.models.protocols import Half, Processor, Tree

Tokens = tuple[int, ...]
ROUNDINGS = 2
"""Allowed difference between the two ways, as a multiple of that of chunked prefill."""


class ProbeInput(NamedTuple):
    """A probe about a chunk, with the features of the chunk."""

    key: str
    """Key of its record."""
    chunk: str
    """Name of the chunk, which its probes share."""
    row: FeatureRecord
    prompt: str
    labels: Sequence[str]
    window: Window | None = None
    """The window of time that is shown; None: the whole chunk."""
    after: Sequence[FeatureRecord] = ()
    """The features of the chunks of the window behind the first."""

    def shown(self, processor: Processor) -> "ProbeInput":
        """Return the probe with the features of its window alone. Raises NoWindows."""
        if self.window is None:
            return self
        clips = [
            Clip.black((chunk.height, chunk.width), chunk.times, chunk.seconds, "video")
            for chunk in self.window.chunks
        ]
        whole = joined([self.row, *self.after], clips)
        row = cut_window(processor, *whole, self.window.first, self.window.last)
        return self._replace(row=row, window=None, after=())


class LabelTokens(NamedTuple):
    """The tokens of the labels of a probe."""

    ids: list[Tokens]
    is_ended: bool
    """Whether each ends with the token that ends a turn."""


def label_tokens(half: Half, processor: Processor, labels: Sequence[str]) -> LabelTokens:
    """Return the tokens of labels as they follow a prompt. Raises UsageError for two labels that
    are the same tokens."""
    ids = [tuple(full_answer_ids(processor, label)) for label in labels]
    refuse_same(labels, ids)
    begun = {of_label[:end] for of_label in ids for end in range(1, len(of_label))}
    if is_ended := not begun.isdisjoint(ids):
        ids = [(*of_label, end_ids_of(half)[0]) for of_label in ids]
    return LabelTokens(ids, is_ended)


def branches(labels: Sequence[Tokens]) -> list[Tokens]:
    """Return the proper beginnings of labels that begin no other one. Reading these reads every
    token of a label but the last."""
    begun = {ids[:end] for ids in labels for end in range(1, len(ids))}
    inner = {ids[:-1] for ids in begun}
    return sorted(begun - inner)


class LabelScores:
    """Computes the log probabilities of the labels of probes with one half."""

    def __init__(self, processor: Processor, prefill_options: PrefillOptions) -> None:
        self._processor = processor
        self._prefill_options = prefill_options
        self._prefix = SharedPrefix()
        self._half: Half | None = None
        self._tokens: dict[tuple[str, ...], LabelTokens] = {}
        self.way = ""
        """How the half is run: from a shared `prefix`, with `whole` prompts, or `stepwise`."""

    def of(self, half: Half, probe: ProbeInput) -> tuple[list[float], LabelTokens]:
        """Return the log probability of each label, and the tokens of the labels. Raises
        UsageError, and out-of-memory errors."""
        labels = self._tokens_of(half, tuple(probe.labels))
        inputs = self._inputs(half, probe)
        check_context(half, inputs, max(map(len, labels.ids)))
        if half is not self._half:
            self._half, self.way = half, self._choose(half, probe, labels, inputs)
        try:
            after = self._after(half, probe, labels, inputs)
        except BaseException:
            self._prefix.forget()
            raise
        return [_sum(after, ids) for ids in labels.ids], labels

    def _tokens_of(self, half: Half, labels: tuple[str, ...]) -> LabelTokens:
        """Return the tokens of labels, which many probes share."""
        if labels not in self._tokens:
            self._tokens[labels] = label_tokens(half, self._processor, labels)
        return self._tokens[labels]

    def _inputs(self, half: Half, probe: ProbeInput) -> dict[str, Tree]:
        return prompts_for(half, self._processor, [probe.row], [probe.prompt], SamplingParams())

    def _choose(
        self, half: Half, probe: ProbeInput, labels: LabelTokens, inputs: Mapping[str, Tree]
    ) -> str:
        """Return how this half is run, found with its first probe."""
        # Any tokens show whether the half sees what follows.
        ids = max(labels.ids, key=len)[:-1] or labels.ids[0] + labels.ids[-1]
        whole = ForcedCaption(probe.row, probe.prompt, torch.tensor([ids], dtype=torch.long))
        if is_bidirectional(half, self._processor, whole):
            return "stepwise"
        try:
            sequence = self._prefilled(half, probe, inputs)
            ((_, logits),) = _read_on(sequence, [ids])
        except UnsupportedCacheError:
            return "whole"
        own = [row.float().cpu() for row in (sequence.logits[0], *logits)]
        expected = [*forced_logits(half, self._processor, whole)]
        difference = relative_difference(expected, own)
        return "prefix" if difference <= ROUNDINGS * tolerance(half.dtype) else "whole"

    def _prefilled(
        self, half: Half, probe: ProbeInput, inputs: Mapping[str, Tree]
    ) -> PrefilledSequence:
        options = self._prefill_options.options(half, self._processor, probe.row)
        return self._prefix.prefill_from_prefix(
            half, probe.chunk, inputs, Features.of([probe.row]), **{**options, **ONE_TOKEN}
        )

    def _after(
        self, half: Half, probe: ProbeInput, labels: LabelTokens, inputs: Mapping[str, Tree]
    ) -> Mapping[Tokens, torch.Tensor]:
        """Return the log probabilities of the token after each beginning of a label."""
        after: dict[Tokens, torch.Tensor] = {}
        if self.way == "prefix":
            sequence = self._prefilled(half, probe, inputs)
            after[()] = _log_probabilities(sequence.logits[0])
            for ids, logits in _read_on(sequence, branches(labels.ids)):
                _note(after, ids, [sequence.logits[0], *logits])
            return after
        forced = forced_logits_stepwise if self.way == "stepwise" else forced_logits
        for ids in branches(labels.ids) or [()]:
            one = ForcedCaption(probe.row, probe.prompt, torch.tensor([ids], dtype=torch.long))
            _note(after, ids, [*forced(half, self._processor, one)])
        return after


def _note(after: dict[Tokens, torch.Tensor], ids: Tokens, logits: Sequence[torch.Tensor]) -> None:
    """Keep what follows each beginning of these tokens, unless that is known."""
    for end in range(len(ids) + 1):
        if ids[:end] not in after:
            after[ids[:end]] = _log_probabilities(logits[end])


def _log_probabilities(logits: torch.Tensor) -> torch.Tensor:
    return logits.float().log_softmax(-1)


def _read_on(
    sequence: PrefilledSequence, texts: Sequence[Tokens]
) -> Iterator[tuple[Tokens, torch.Tensor]]:
    """Yield texts of tokens with the logits after each of their tokens [tokens, vocabulary], read
    after a sequence. A pass reads some texts at once; what fills the shorter ones up stands behind
    their tokens, which do not see it."""
    device = sequence.ids.device
    for at in range(0, len(texts), ROWS):
        some = texts[at : at + ROWS]
        rows, count = len(some), max(map(len, some))
        cache = copy.deepcopy(sequence.cache)
        if rows > 1:
            cache.batch_repeat_interleave(rows)
        inputs = {**sequence.extra_inputs}
        inputs |= {n: types.expand(rows, count) for n, types in sequence.token_types.items()}
        positions = sequence.position + torch.arange(count, device=device)
        inputs[sequence.positions_name] = positions.expand(*positions.shape[:-2], rows, count)
        if "logits_to_keep" in inputs:
            inputs["logits_to_keep"] = count
        ids = torch.tensor([[*text, *[0] * (count - len(text))] for text in some], device=device)
        seen = torch.ones(rows, sequence.tokens + count, dtype=torch.long, device=device)
        with torch.inference_mode():
            logits = sequence.model(
                input_ids=ids, past_key_values=cache, attention_mask=seen, **inputs
            ).logits[:, -count:]
        yield from ((text, of_row[: len(text)]) for text, of_row in zip(some, logits, strict=True))


def _sum(after: Mapping[Tokens, torch.Tensor], ids: Tokens) -> float:
    return float(sum(after[ids[:at]][token] for at, token in enumerate(ids)))
