"""The in-flight scheduler: decodes many sequences in slots, and admits a request whenever one ends.

How it works:

1. The main loop repeats three actions. It frees the slots of withdrawn requests, admits requests
   into free slots, and runs one decode step for all slots.
2. Admission takes preempted requests first, then the next batch. A thread claims that batch ahead
   of time, while the running sequences are decoded. Admission waits for the thread only while no
   sequence is running.
3. A request is prefilled alone, beside the running sequences. The first token comes from the logits
   of the prefill. Unless that token ends the caption, the sequence gets a slot.
4. The first sequence creates the KV pool. A longer sequence widens it. The pool is narrowed when
   only half of its columns are needed, because every step computes all columns.
5. A decode step makes one token per slot by the sequence's logits processors and argmax. Tokens are
   copied to the host asynchronously and read some steps later. A sequence ends with an end token, a
   stop string or at its token limit.
6. When a decode step runs out of memory, the number of slots drops to the next lower power of two.
   The running sequences restart from their prompts; none of their captions has been yielded yet. A
   right-aligned pool raises the error, because fewer slots would take as much memory.
7. A request whose prefill runs out of memory runs alone, once no other sequence runs. If the next
   request fails as well, the number of slots drops, too.
8. When the model's own code raises in a decode step, every running sequence restarts alone. This
   finds the item on which the model raises.

The repetition penalty is applied to many rows of a step at once. Transformers' processor takes one
row with all its tokens, so each row costs a dozen calls per step. Here a mask holds the tokens of
each row, and a call serves ROWS rows. The numbers are the same.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from transformers import RepetitionPenaltyLogitsProcessor

from artifacts.captions import Ended
from artifacts.errors import UsageError
from stages.decode.confidence import Confidence, likeliest, token_scores
from stages.decode.engines.inflight.pool import Pool
from stages.decode.engines.inflight.pool_shape import PoolLayout
from stages.decode.engines.inflight.prefill import PrefilledSequence
from stages.decode.engines.inflight.recorded import StepRecorder, make_pool
from stages.decode.prompts import ContextExceeded
from stages.decode.protocol import DecodeRequest
from stages.memory.oom_retry import OomRetry, release_memory

ROWS = 8
"""Rows per call, so that intermediate results stay small."""


def penalty_of(processors: Any) -> float | None:
    """Return the penalty of a sequence with no other logits processor; None for others."""
    if len(processors) != 1 or type(processors[0]) is not RepetitionPenaltyLogitsProcessor:
        return None
    (only,) = processors
    return None if only.prompt_ignore_length is not None else float(only.penalty)


class RowPenalties:
    """The tokens of the rows that have the same penalty."""

    def __init__(self, penalty: float, logits: torch.Tensor, slots: int) -> None:
        """`logits` are of shape [1, vocabulary]."""
        self.penalty = penalty
        self._seen = logits.new_zeros(slots, logits.shape[-1], dtype=torch.bool)
        self._active = logits.new_zeros(slots, 1, dtype=torch.bool)

    def put(self, slot: int, ids: torch.Tensor) -> None:
        """Begin a sequence with these tokens, of shape [1, tokens]."""
        self._seen[slot] = False
        self._seen[slot, ids[0]] = True
        self._active[slot] = True

    def clear(self, slot: int) -> None:
        """Leave the row of a slot as it is from now on."""
        self._seen[slot] = self._active[slot] = False

    def select(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the likeliest token of each row after the penalty, of shape [rows]. The logits, of
        shape [rows, vocabulary], stay as they are."""
        count, chosen = len(self._seen), []
        for seen, rows in zip(self._seen.split(ROWS), logits[:count].split(ROWS), strict=True):
            changed = torch.where(rows < 0, rows * self.penalty, rows / self.penalty)
            chosen.append(likeliest(torch.where(seen, changed, rows)))
        return torch.cat([*chosen, likeliest(logits[count:])])

    def add(self, tokens: torch.Tensor) -> None:
        """Note the chosen tokens, of shape [rows]."""
        chosen = tokens[: len(self._seen)].unsqueeze(1)
        self._seen.scatter_(1, chosen, self._active | self._seen.gather(1, chosen))


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
    """Yield a prefetcher. After the block, no thread reads `batches` any more."""
    with ThreadPoolExecutor(max_workers=1) as executor:
        yield RequestPrefetcher(batches, executor)


@dataclass(kw_only=True, slots=True)
class SequenceState:
    """The state of a running sequence."""

    request: DecodeRequest
    max_length: int
    """Maximum number of tokens of prompt and caption together."""
    max_new_tokens: int
    """Maximum number of tokens of the caption."""
    eos_token_ids: frozenset[int]
    processors: Any
    """Its logits processors; none for most checkpoints."""
    ids: torch.Tensor
    """All tokens so far, prompt and caption, of shape [1, tokens], for the processors."""
    stopped: Callable[[Sequence[int]], bool] | None = None
    """Function that checks the new tokens for a stop string; None: no check."""
    prompt_tokens: int = 0
    shares_penalty: bool = False
    """Whether its repetition penalty is applied to all rows at once."""
    fault: UsageError | None = None
    """The error for request settings that cannot be applied."""
    output_ids: list[int] = field(default_factory=list)
    confidence: Confidence = field(default_factory=Confidence)
    """How sure the model was of these tokens."""
    finish_reason: Ended | None = None
    last_partial_at: float = 0.0
    """Time of the last partial caption that was sent."""

    @classmethod
    def from_prefill(cls, request: DecodeRequest, sequence: PrefilledSequence) -> "SequenceState":
        return cls(
            request=request,
            max_length=sequence.tokens + sequence.max_new_tokens,
            max_new_tokens=sequence.max_new_tokens,
            eos_token_ids=sequence.eos_token_ids,
            processors=sequence.processors,
            ids=sequence.ids,
            stopped=sequence.stopped,
            prompt_tokens=sequence.prompt_tokens,
        )

    @classmethod
    def refused(cls, request: DecodeRequest, fault: UsageError) -> "SequenceState":
        """Return a finished sequence for a request that cannot be decoded as requested."""
        return cls(
            request=request,
            max_length=0,
            max_new_tokens=0,
            eos_token_ids=frozenset(),
            processors=(),
            ids=torch.zeros((1, 0), dtype=torch.long),
            fault=fault,
            finish_reason="stop",
        )

    def append_token(self, token: int, scores: Sequence[float]) -> bool:
        """Append a generated token with its log-probability and margin, and return whether it is
        the last."""
        self.output_ids.append(token)
        self.confidence.add(*scores)
        stopped = self.stopped is not None and self.stopped(self.output_ids)
        if token in self.eos_token_ids or self.fault or stopped:
            self.finish_reason = "stop"
        elif len(self.output_ids) >= self.max_new_tokens:
            self.finish_reason = "length"
        return self.finish_reason is not None

    def select_token(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the next token, of shape [1]. `logits` are of shape [1, vocabulary]."""
        if self.fault is None:
            try:
                logits = self.processors(self.ids, logits)
            except UsageError as error:
                if not self.request.item.settings:
                    raise
                self.fault = error  # the sequence ends with this token, which is discarded
        token: torch.Tensor = logits.argmax(-1)
        if len(self.processors):
            self.ids = torch.cat([self.ids, token.unsqueeze(1).to(self.ids.dtype)], dim=1)
        return token


class PendingTokens:
    """One step's tokens and their scores, on their way from the device to the host."""

    def __init__(self, tokens: torch.Tensor, scores: torch.Tensor) -> None:
        """Take tokens of shape [rows], and their log-probabilities and margins of shape [rows,
        2]."""
        self._tokens, self._scores, self._copied = tokens, scores, None
        if tokens.device.type == "cuda":  # the next step starts before these are read
            self._tokens, self._scores = _copying(tokens), _copying(scores)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def read(self) -> list[tuple[int, list[float]]]:
        """Wait for the copy and return each row's token and its scores."""
        if self._copied is not None:
            self._copied.synchronize()
        return list(zip(self._tokens.tolist(), self._scores.tolist(), strict=True))


def _copying(values: torch.Tensor) -> torch.Tensor:
    """Start to copy values from the device into pinned memory."""
    copied = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    return copied.copy_(values, non_blocking=True)


@dataclass(kw_only=True, slots=True)
class SlotUsage:
    """Slot usage in rows times steps."""

    steps: int = 0
    """Computed steps of all slots, empty or not."""
    used: int = 0
    """Steps that made a token of a caption."""


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
        self.usage = SlotUsage()
        self._pool: Pool | None = None
        self._penalties: RowPenalties | None = None
        """Repetition penalties of the rows that have nothing else; None: no row has one."""
        self._running: list[SequenceState | None] = []
        self._pending: deque[tuple[PendingTokens, list[SequenceState | None]]] = deque()
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
        lone = InflightScheduler(*parts, slots=1, lag=self._lag, recorder=self._recorder)
        lone.usage = self.usage
        state = lone._assign_slot(request, self._prefill(request))
        while state.finish_reason is None and not request.is_withdrawn:
            lone._step()
            for _ in lone._collect_tokens():
                pass
        return state

    def _retire(self) -> None:
        """Free the slots of withdrawn requests."""
        for slot, state in enumerate(self._running):
            if state is not None and state.request.is_withdrawn:
                state.finish_reason = "length"  # tokens of pending steps are skipped, too
                self._running[slot] = None
                assert self._pool is not None
                self._pool.clear(slot)

    def _run_isolated(self, request: DecodeRequest) -> Iterator[SequenceState]:
        key, retry = request.item.key, self._oom_retry
        made = retry.run_batch([request], lambda _: key, lambda _: self.run_alone(request))
        for _, state in made:
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
            state = None if request.is_withdrawn else self._prefill_next(request)
            if state is not None and state.finish_reason is not None:
                yield state

    def _prefill_next(self, request: DecodeRequest) -> SequenceState | None:
        """Prefill a request and put it into a slot. Return None on out of memory."""
        busy = any(self._running)
        try:
            prefilled, message, fault = self._oom_retry.attempt(partial(self._prefill, request))
        except UsageError as error:
            if not request.item.settings and not isinstance(error, ContextExceeded):
                raise
            return SequenceState.refused(request, error)
        if fault is not None:
            self._oom_retry.fail(request, fault)
            return None
        if message is not None:
            self._run_alone.append(request)
            if self._last_prefill_failed:
                self._shrink_after_oom(message)
            self._last_prefill_failed = busy
            return None
        self._last_prefill_failed = False
        placed, message, fault = self._oom_retry.attempt(
            lambda: self._assign_slot(request, prefilled.pop())
        )
        if fault is not None:
            self._isolate_running([request])
            return None
        if message is not None:
            self._preempted.appendleft(request)
            self._shrink_after_oom(message)
            return None
        return placed.pop()

    def _assign_slot(self, request: DecodeRequest, sequence: PrefilledSequence) -> SequenceState:
        """Put a prefilled sequence into a slot, unless its first token ends it."""
        state = SequenceState.from_prefill(request, sequence)
        token = state.select_token(sequence.logits)
        first = PendingTokens(token, token_scores(sequence.logits, token))
        if not state.append_token(*first.read()[0]):
            self._ensure_pool(sequence, state.max_length)
            assert self._pool is not None
            slot = self._running.index(None)
            self._pool.put(slot, sequence, token.unsqueeze(1))
            self._share_penalty(slot, state, sequence.logits)
            self._running[slot] = state
        return state

    def _share_penalty(self, slot: int, state: SequenceState, logits: torch.Tensor) -> None:
        """Let a sequence whose only processor is a repetition penalty share the call of all rows.
        All rows that share it have the penalty of the first."""
        penalty = penalty_of(state.processors)
        if self._penalties is None and penalty is not None:
            self._penalties = RowPenalties(penalty, logits, self.slots)
        if self._penalties is None:
            return
        state.shares_penalty = penalty == self._penalties.penalty
        if state.shares_penalty:
            self._penalties.put(slot, state.ids)
        else:
            self._penalties.clear(slot)

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
        _, message, fault = self._oom_retry.attempt(self._step)
        if fault is not None:
            self._isolate_running([])
            return
        if message is not None:
            self._shrink_after_oom(message)
            return
        if len(self._pending) > self._lag:
            yield from self._collect_tokens()

    def _step(self) -> None:
        assert self._pool is not None
        logits, slots = self._pool.step(), len(self._running)
        with torch.inference_mode():
            penalties = self._penalties
            tokens = likeliest(logits) if penalties is None else penalties.select(logits)
            for slot, state in enumerate(self._running):
                if state is not None and len(state.processors) and not state.shares_penalty:
                    tokens[slot] = state.select_token(logits[slot : slot + 1])[0]
            if penalties is not None:
                penalties.add(tokens)
            scores = token_scores(logits[:slots], tokens[:slots])  # rows beyond them are unused
        self._pool.set_tokens(tokens)
        self._pending.append((PendingTokens(tokens[:slots], scores), list(self._running)))
        self.usage.steps += slots

    def _collect_tokens(self) -> Iterator[SequenceState]:
        """Read the tokens of the oldest pending step. Yield the sequences that they end."""
        assert self._pool is not None
        pending, states = self._pending.popleft()
        for slot, (state, made) in enumerate(zip(states, pending.read(), strict=True)):
            if state is None or state.finish_reason is not None:
                continue
            self.usage.used += 1
            if state.append_token(*made):
                self._running[slot] = None
                self._pool.clear(slot)
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
        if self._layout.aligned:  # fewer slots would take as much memory
            raise MemoryError(message)
        if self.slots > 1:
            self.slots = self._oom_retry.shrink(self.slots, message)
            requests += self._run_alone
            self._run_alone.clear()
            self._preempted.extendleft(reversed(requests))
        else:
            self._run_alone.extend([*requests, *self._preempted])
            self._preempted.clear()

    def _free_pool(self) -> None:
        self._pool = self._penalties = None
        self._running = []
        self._pending.clear()
