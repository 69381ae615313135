"""The in-flight scheduler: decodes many sequences in slots, and admits a request whenever one ends.

How it works:

1. The main loop repeats three actions. It frees the slots of withdrawn requests, admits requests
   into free slots, and runs one decode step for all slots.
2. Admission takes preempted requests first, then the next batch. A thread claims that batch ahead
   of time, while the running sequences are decoded. Admission waits for the thread only while no
   sequence is running.
3. A request is prefilled alone, beside the running sequences. The first token comes from the logits
   of the prefill, and the sequence gets a slot.
4. The first sequence creates the KV pool. A longer sequence widens it. The pool is narrowed when
   only half of its columns are needed, because every step computes all columns.
5. A decode step makes one token per slot by the sequence's logits processors and argmax.
   Tokens, the first one too, are copied to the host asynchronously and read some
   steps later. A sequence ends with an end token, a stop string or at its token limit.
6. When a decode step runs out of memory, the number of slots drops to the next lower power of two.
   The running sequences restart from their prompts; none of their captions has been yielded yet.
7. A request whose prefill runs out of memory runs alone, once no other sequence runs. If the next
   request fails as well, the number of slots drops, too.
8. When the model's own code raises in a decode step, every running sequence restarts alone. This
   finds the item on which the model raises.
"""

from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import chain
from typing import Any

import torch
from transformers.generation.logits_process import (
    LogitsProcessor,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from artifacts.errors import UsageError
from artifacts.texts.captions import Ended
from stages.decode.confidence import Confidence, likeliest, token_scores
from stages.decode.constraint import HostMaskProcessor, Masks
from stages.decode.engines.inflight.pool import Pool
from stages.decode.engines.inflight.pool_shape import PoolLayout, columns_for
from stages.decode.engines.inflight.prefill import PrefilledSequence
from stages.decode.engines.inflight.recorded import StepRecorder, make_pool
from stages.decode.generate_kwargs import PresencePenalty, SeededSampler, sampled_only
from stages.decode.prompts import ContextExceeded
from stages.decode.protocol import DecodeRequest
from stages.memory.oom_retry import OomRetry, release_memory, try_items

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
        processors: Iterable[LogitsProcessor] = (),
        *,
        may_fail: bool = False,
        fault: UsageError | None = None,
    ) -> None:
        """`may_fail`: whether an error of a processor ends this sequence alone."""
        self.processors = [*processors]
        self.settings: Hashable = tuple(
            (type(processor), SETTINGS.get(type(processor), lambda _: None)(processor))
            for processor in self.processors
        )
        self.may_fail = may_fail
        self.fault = fault
        """The error for settings that cannot be applied."""
        self.masked = [
            processor.new_row() if isinstance(processor, HostMaskProcessor) else None
            for processor in self.processors
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

    def scores_of(self, shared: Sequence[LogitsProcessor], scores: torch.Tensor) -> torch.Tensor:
        """Return processed scores [rows, vocabulary]; `shared` are the processors of one member."""
        for at, processor in enumerate(shared):
            if isinstance(processor, SeededSampler):
                drawn = {row: rules.processors[at] for row, rules in self.members.items()}
                generators = {
                    row: sampler.generators(scores.device)[0]
                    for row, sampler in drawn.items()
                    if isinstance(sampler, SeededSampler)  # all are: members have equal settings
                }
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

    def _masked(
        self, at: int, processor: HostMaskProcessor[Any], scores: torch.Tensor
    ) -> torch.Tensor:
        """Apply the masks of each row. A row that cannot go on ends; its token is discarded."""
        rows = [row for row, rules in self.members.items() if rules.fault is None]
        if not rows:
            return scores
        members = [self.members[row] for row in rows]
        tokens = [self.generated(rules.slot) for rules in members]
        states = [rules.masked[at] for rules in members]
        masks: Masks = processor.masks_of(states, tokens, scores.shape[1])
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

    processors: Sequence[LogitsProcessor]
    mask: torch.Tensor
    """Which rows of a step belong to it, of shape [rows]."""
    members: dict[int, RowRules] = field(default_factory=dict)
    """Slot → rules."""


class TokenSelection:
    """Selects the tokens of one pool."""

    def __init__(self, rows: int, *, whole: bool | None = None) -> None:
        """`rows` of a step; `whole`: whether a group computes all of them (None: on a GPU)."""
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
        is_whole = logits.device.type != "cpu" if self._whole is None else self._whole
        for group in self._groups.values():
            slots = [*group.members]
            ids, new = self._ids if is_whole else self._ids[:, slots]
            members = group.members if is_whole else dict(enumerate(group.members.values()))
            rows = Rows(members=members, ids=ids, new=new, generated=generated)
            best = likeliest(
                rows.scores_of(group.processors, logits if is_whole else logits[slots])
            )
            if is_whole:
                tokens = torch.where(group.mask, best, tokens)
            else:
                tokens[slots] = best
            for rules in group.members.values():
                rules.tokens += 1
        if self._groups:
            self._ids[..., :-1] = self._ids[..., 1:].clone()
            self._ids[..., -1] = tokens
        return tokens


class RequestPrefetcher:
    """Yields the requests in order; a thread claims the next batch ahead of time."""

    def __init__(
        self, batches: Iterable[Sequence[DecodeRequest]], executor: ThreadPoolExecutor
    ) -> None:
        self._batches = iter(batches)
        self._executor = executor
        self._ready: deque[DecodeRequest] = deque()
        self._next: Future[Sequence[DecodeRequest] | None] | None = None
        self._exhausted = False

    def next_request(self, *, wait: bool) -> DecodeRequest | None:
        """Return the next request. Return None at the end, or without `wait` while the next batch
        is not ready. At most one batch is claimed ahead of time."""
        while not self._ready and not self._exhausted:
            self._claim_next()
            assert self._next is not None
            if not (wait or self._next.done()):
                return None
            batch, self._next = self._next.result(), None
            self._exhausted = batch is None
            self._ready.extend(batch or ())
        if not self._exhausted:
            self._claim_next()
        return self._ready.popleft() if self._ready else None

    def _claim_next(self) -> None:
        if self._next is None:
            self._next = self._executor.submit(next, self._batches, None)


@contextmanager
def prefetch_requests(batches: Iterable[Sequence[DecodeRequest]]) -> Iterator[RequestPrefetcher]:
    """Yield a prefetcher. After the block, no thread reads `batches` any more. After an error in
    it, a thread may still wait for the next batch, which may never arrive."""
    executor = ThreadPoolExecutor(max_workers=1)
    is_complete = False
    try:
        yield RequestPrefetcher(batches, executor)
        is_complete = True
    finally:
        executor.shutdown(wait=is_complete, cancel_futures=True)


@dataclass(kw_only=True, slots=True)
class SequenceState:
    """The state of a running sequence."""

    request: DecodeRequest
    max_length: int = 0
    """Maximum number of tokens of prompt and caption together."""
    max_new_tokens: int = 0
    """Maximum number of tokens of the caption."""
    eos_token_ids: frozenset[int] = frozenset()
    rules: RowRules
    """How its tokens are selected."""
    stopped: Callable[[Sequence[int]], bool] | None = None
    """Function that checks the new tokens for a stop string; None: no check."""
    prompt_tokens: int = 0
    output_ids: list[int] = field(default_factory=list)
    confidence: Confidence = field(default_factory=Confidence)
    """How sure the model was of these tokens."""
    first_logits: torch.Tensor | None = None
    """The logits of the first token, of shape [vocabulary], if the request wants to know them."""
    finish_reason: Ended | None = None
    slot: int = -1
    last_partial_at: float = 0.0
    """Time of the last partial caption that was sent."""

    @classmethod
    def from_prefill(cls, request: DecodeRequest, sequence: PrefilledSequence) -> "SequenceState":
        return cls(
            request=request,
            max_length=sequence.tokens + sequence.max_new_tokens,
            max_new_tokens=sequence.max_new_tokens,
            eos_token_ids=sequence.eos_token_ids,
            rules=RowRules(sequence.processors, may_fail=bool(request.item.settings)),
            stopped=sequence.stopped,
            prompt_tokens=sequence.prompt_tokens,
            first_logits=sequence.logits[0] if request.item.measures else None,
        )

    @property
    def fault(self) -> UsageError | None:
        """Return the error for request settings that cannot be applied."""
        return self.rules.fault

    def append_token(self, token: int, scores: Sequence[float]) -> bool:
        """Append a token with its log-probability and margin. Return whether it is the last."""
        self.output_ids.append(token)
        self.confidence.add(*scores)
        stopped = self.stopped is not None and self.stopped(self.output_ids)
        stopped |= not self.confidence.is_finite
        if token in self.eos_token_ids or self.fault or stopped:
            self.finish_reason = "stop"
        elif len(self.output_ids) >= self.max_new_tokens:
            self.finish_reason = "length"
        return self.finish_reason is not None


class PendingTokens:
    """Tokens of some sequences and their scores, on their way from the device to the host."""

    def __init__(
        self,
        tokens: torch.Tensor,
        scores: torch.Tensor,
        states: Sequence[SequenceState | None],
        step: int,
    ) -> None:
        """Take tokens of shape [rows], and their log-probabilities and margins of shape [rows, 2].
        `step` is the number of the last step that was started before or with them."""
        self.step, self._states = step, states
        self._tokens, self._scores, self._copied = tokens, scores, None
        self._read: Sequence[tuple[SequenceState, int, list[float]]] | None = None
        if tokens.device.type == "cuda":  # the next step starts before these are read
            self._tokens, self._scores = _copying(tokens), _copying(scores)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def read(self) -> Sequence[tuple[SequenceState, int, list[float]]]:
        """Wait for the copy and return each sequence's state, token and scores."""
        if self._read is None:
            if self._copied is not None:
                self._copied.synchronize()
            steps = zip(self._states, self._tokens.tolist(), self._scores.tolist(), strict=True)
            self._read = [(state, *one) for state, *one in steps if state is not None]
        return self._read


def _copying(values: torch.Tensor) -> torch.Tensor:
    """Start to copy values from the device into pinned memory."""
    copied = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    return copied.copy_(values, non_blocking=True)


class InflightScheduler:
    """The slots of one process, and the sequences in them."""

    def __init__(
        self,
        prefill: Callable[[DecodeRequest], PrefilledSequence],
        oom_retry: OomRetry,
        layout: PoolLayout,
        *,
        slots: int,
        lag: int = 0,
        on_token: Callable[[SequenceState], None] | None = None,
        recorder: StepRecorder | None = None,
    ) -> None:
        """Schedule at most `slots` sequences, or fewer if `layout` has fewer rows. Tokens are read
        `lag` steps after they were computed. `on_token` gets each sequence after a new token.
        `recorder` records the steps; None: they are computed one by one."""
        self._on_token = on_token
        self._recorder = recorder
        self._prefill = prefill
        self._oom_retry = oom_retry
        self._lag = lag
        self._layout = layout
        self.slots = min(slots, layout.rows)
        self.usage = Counter[str]()
        """Computed steps of all slots, empty or not (`row_steps`), and those that made a token of a
        caption (`row_steps_used`)."""
        self._pool: Pool | None = None
        self._selection = TokenSelection(layout.rows)
        self._running: list[SequenceState | None] = []
        self._steps = 0
        """Number of steps that were started."""
        self._pending: deque[PendingTokens] = deque()
        self._preempted: deque[DecodeRequest] = deque()
        """Preempted requests: they ran when memory ran out and start again."""
        self._run_alone: deque[DecodeRequest] = deque()
        """Requests that did not fit next to others and will run alone."""
        self._last_prefill_failed = False
        """Whether the last prefill ran out of memory while sequences were running."""

    def run(self, requests: RequestPrefetcher) -> Iterator[SequenceState | None]:
        """Yield each sequence when it ends, and None before waiting for further requests. A request
        that runs out of memory even alone is left out."""
        while True:
            self._retire()
            yield from self._admit(requests)
            if any(self._running):
                yield from self._decode_step()
            elif self._run_alone:
                self._free_pool()
                yield from self._run_isolated(self._run_alone.popleft())
            else:
                break
        self._free_pool()

    def run_alone(self, request: DecodeRequest) -> SequenceState:
        """Decode one request in a one-slot pool. Raises out-of-memory errors."""
        parts = self._prefill, self._oom_retry, self._layout
        lone = InflightScheduler(*parts, slots=1, recorder=self._recorder)
        lone.usage = self.usage
        state = lone._assign_slot(request, self._prefill(request))
        ended = [*lone._collect_tokens()]
        while not ended and not request.is_withdrawn:
            lone._step()
            ended = [*lone._collect_tokens()]
        return state

    def _retire(self) -> None:
        """Free the slots of withdrawn requests."""
        for slot, state in enumerate(self._running):
            if state is not None and state.request.is_withdrawn:
                state.finish_reason = "length"  # tokens of pending steps are skipped, too
                self._clear(slot)

    def _clear(self, slot: int) -> None:
        assert self._pool is not None
        self._running[slot] = None
        self._pool.clear(slot)
        self._selection.clear(slot)

    def _run_isolated(self, request: DecodeRequest) -> Iterator[SequenceState]:
        key, retry = request.item.key, self._oom_retry
        attempts = retry.run_batch([request], lambda _: key, lambda _: self.run_alone(request))
        for _, state in attempts:
            if not request.is_withdrawn:
                yield state

    def _admit(self, requests: RequestPrefetcher) -> Iterator[SequenceState | None]:
        """Admit requests into free slots. Yield sequences that end with their first token."""
        while not self._running or None in self._running:
            if self._run_alone and not any(self._running):
                return
            request = self._preempted.popleft() if self._preempted else None
            request = request or requests.next_request(wait=False)
            if request is None and not any(self._running):
                yield None
                request = requests.next_request(wait=True)
            if request is None:
                return
            refused = None if request.is_withdrawn else self._prefill_next(request)
            if refused is not None:
                yield refused
            yield from self._collect_tokens()

    def _prefill_next(self, request: DecodeRequest) -> SequenceState | None:
        """Prefill a request and put it into a slot. Return its state only if it is refused."""
        busy = any(self._running)
        try:
            prefilled, message, fault = try_items(partial(self._prefill, request))
        except UsageError as error:
            if not request.item.settings and not isinstance(error, ContextExceeded):
                raise
            rules = RowRules(fault=error)
            return SequenceState(request=request, rules=rules, finish_reason="stop")
        if fault is not None:
            self._oom_retry.faults.add(request, fault)
            return None
        if message is not None:
            self._run_alone.append(request)
            if self._last_prefill_failed:
                self._shrink_after_oom(message)
            self._last_prefill_failed = busy
            return None
        self._last_prefill_failed = False
        _, message, fault = try_items(lambda: self._assign_slot(request, prefilled.pop()))
        if fault is not None:
            self._isolate_running([request])
            return None
        if message is not None:
            self._preempted.appendleft(request)
            self._shrink_after_oom(message)
        return None

    def _assign_slot(self, request: DecodeRequest, sequence: PrefilledSequence) -> SequenceState:
        state = SequenceState.from_prefill(request, sequence)
        token = self._selection.first(state.rules, sequence.ids, sequence.logits)
        scores = token_scores(sequence.logits, token)
        self._ensure_pool(sequence, state.max_length)
        assert self._pool is not None
        slot = state.slot = self._running.index(None)
        self._pool.put(slot, sequence, token.unsqueeze(1))
        self._selection.put(slot, state.rules, sequence.ids, token, state.max_length)
        self._running[slot] = state
        # Not read yet: on a device, that would wait for the whole prompt.
        self._pending.append(PendingTokens(token, scores, [state], self._steps))
        return state

    def _ensure_pool(self, sequence: PrefilledSequence, max_length: int) -> None:
        """Create or resize the pool so that the sequence fits. A pool at least twice as wide as
        needed is narrowed, because every step computes all of it."""
        lengths = [state.max_length for state in self._running if state is not None]
        columns = self._layout.columns(max([max_length, *lengths]))
        if self._pool is None:
            self._running = [None] * self.slots
            shape = self._layout.pool(self.slots, columns)
            self._pool = make_pool(sequence, shape, self._recorder)
        elif not columns <= self._pool.shape.columns < 2 * columns:
            self._pool.resize(columns)

    def _decode_step(self) -> Iterator[SequenceState]:
        """Run one decode step. Yield the sequences that ended."""
        _, message, fault = try_items(self._step)
        if fault is not None:
            self._isolate_running([])
            return
        if message is not None:
            self._shrink_after_oom(message)
            return
        yield from self._collect_tokens()

    def _step(self) -> None:
        assert self._pool is not None
        logits, slots = self._pool.step(), len(self._running)
        tokens = self._selection.select(logits, self._generated())
        with torch.inference_mode():
            scores = token_scores(logits[:slots], tokens[:slots])  # rows beyond them are unused
        self._pool.set_tokens(tokens)
        self._steps += 1
        self._pending.append(PendingTokens(tokens[:slots], scores, [*self._running], self._steps))
        self.usage["row_steps"] += slots

    def _generated(self) -> Callable[[int], list[int]]:
        """Return a function that returns the tokens that a slot's sequence has generated. Those
        that are not collected yet are read when it is first called. They were copied before the
        running step, so they do not wait for it."""

        @cache
        def waiting() -> Mapping[int, list[int]]:
            tokens: dict[int, list[int]] = {}
            for state, token, _ in chain.from_iterable(p.read() for p in self._pending):
                tokens.setdefault(id(state), []).append(token)
            return tokens

        def generated(slot: int) -> list[int]:
            state = self._running[slot]
            assert state is not None
            return [*state.output_ids, *waiting().get(id(state), ())]

        return generated

    def _collect_tokens(self) -> Iterator[SequenceState]:
        """Read the pending tokens that are `lag` steps old. Yield the sequences that they end."""
        while self._pending and self._pending[0].step <= self._steps - self._lag:
            for state, token, scores in self._pending.popleft().read():
                if state.finish_reason is not None:
                    continue
                self.usage["row_steps_used"] += bool(state.output_ids)  # the first is the prompt's
                if state.append_token(token, scores):
                    self._clear(state.slot)
                    if state.confidence.is_finite:
                        self._oom_retry.note_success()
                    yield state
                elif self._on_token is not None:
                    self._on_token(state)

    def _isolate_running(self, more: Sequence[DecodeRequest]) -> None:
        """Restart the running sequences and `more`, each alone: the model raises on one."""
        requests = [state.request for state in self._running if state is not None]
        self._run_alone.extend([*requests, *more])
        self._free_pool()

    def _shrink_after_oom(self, message: str) -> None:
        """Reduce the slots after out of memory, and restart the running sequences."""
        requests = [state.request for state in self._running if state is not None]
        self._free_pool()
        release_memory()
        if self.slots > 1:
            self.slots = self._oom_retry.shrink(self.slots, message)
            requests += self._run_alone
            self._run_alone.clear()
            self._preempted.extendleft(reversed(requests))
        else:
            self._run_alone.extend([*requests, *self._preempted])
            self._preempted.clear()

    def _free_pool(self) -> None:
        self._pool, self._selection = None, TokenSelection(self._layout.rows)
        self._running = []
        self._pending.clear()
