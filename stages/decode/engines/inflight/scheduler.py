"""The in-flight scheduler: decodes many sequences in slots, and admits a request whenever one ends.

How it works:

1. The main loop repeats three actions. It frees the slots of withdrawn requests, admits requests
   into free slots, and runs one decode step for all slots.
2. Admission takes preempted requests first, then the next batch, which a thread claims ahead of
   time. It waits for that thread only while no sequence is running.
3. A request is prefilled alone, beside the running sequences. The first token comes from the logits
   of the prefill. Unless that token ends the caption, the sequence gets a slot.
4. The first sequence creates the KV pool. A longer sequence widens it. The pool is narrowed when
   only half of its columns are needed, because every step computes all columns.
5. A decode step makes one token per slot by the sequence's logits processors and argmax. Tokens are
   copied to the host asynchronously and read some steps later. A sequence ends with an end token, a
   stop string or at its token limit.
6. When a decode step runs out of memory, the number of slots drops to the next lower power of two.
   The running sequences restart from their prompts; none of their captions has been yielded yet.
   A right-aligned pool raises instead, because fewer slots would take as much memory.
7. A request whose prefill runs out of memory runs alone, once no other sequence runs. If the next
   request fails as well, the number of slots drops, too.
8. When the model's own code raises in a decode step, every running sequence restarts alone. This
   finds the item on which the model raises.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from artifacts.captions import Ended
from artifacts.errors import UsageError
from stages.decode.engines.inflight.pool import SlotPool
from stages.decode.engines.inflight.pool_shape import PoolLayout
from stages.decode.engines.inflight.prefill import PrefilledSequence
from stages.decode.prompts import ContextExceeded
from stages.decode.protocol import DecodeRequest
from stages.memory.oom_retry import OomRetry, release_memory


@dataclass(kw_only=True, slots=True)
class SequenceState:
    """The state of a running sequence."""

    asked: DecodeRequest
    most: int
    """Maximum number of tokens of prompt and caption together."""
    limit: int
    """Maximum number of tokens of the caption."""
    ends: frozenset[int]
    processors: Any
    """Its logits processors; none for most checkpoints."""
    ids: torch.Tensor
    """All tokens so far, prompt and caption, of shape [1, tokens], for the processors."""
    stopped: Callable[[Sequence[int]], bool] | None = None
    """Tells whether the new tokens hit a stop string; None: there is no such check."""
    prompt_tokens: int = 0
    fault: UsageError | None = None
    """The error for request settings that cannot be applied."""
    said: list[int] = field(default_factory=list)
    ended: Ended | None = None
    told: float = 0.0
    """Time of the last partial caption that was sent."""

    @classmethod
    def of(cls, asked: DecodeRequest, row: PrefilledSequence) -> "SequenceState":
        return cls(
            asked=asked,
            most=row.tokens + row.limit,
            limit=row.limit,
            ends=row.ends,
            processors=row.processors,
            ids=row.ids,
            stopped=row.stopped,
            prompt_tokens=row.prompt_tokens,
        )

    @classmethod
    def refused(cls, asked: DecodeRequest, fault: UsageError) -> "SequenceState":
        """Return a finished sequence for a request that cannot be decoded as requested."""
        nothing = torch.zeros((1, 0), dtype=torch.long)
        return cls(
            asked=asked,
            most=0,
            limit=0,
            ends=frozenset(),
            processors=(),
            ids=nothing,
            fault=fault,
            ended="stop",
        )

    def hear(self, token: int) -> bool:
        """Append a generated token and return whether it is the last."""
        self.said.append(token)
        if token in self.ends or self.fault or (self.stopped and self.stopped(self.said)):
            self.ended = "stop"
        elif len(self.said) >= self.limit:
            self.ended = "length"
        return self.ended is not None

    def choose(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the next token, of shape [1]. `logits` are of shape [1, vocabulary]."""
        if self.fault is None:
            try:
                logits = self.processors(self.ids, logits)
            except UsageError as error:
                if not self.asked.member.settings:
                    raise
                self.fault = error  # it ends with this token, which nobody reads
        token: torch.Tensor = logits.argmax(-1)
        if len(self.processors):
            self.ids = torch.cat([self.ids, token.unsqueeze(1).to(self.ids.dtype)], dim=1)
        return token


class PendingTokens:
    """One step's tokens, on their way from the device to the host."""

    def __init__(self, tokens: torch.Tensor) -> None:
        self._tokens, self._there = tokens, None
        if tokens.device.type == "cuda":  # so that the next step is begun before these are read
            self._tokens = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=True)
            self._tokens.copy_(tokens, non_blocking=True)
            self._there = torch.cuda.Event()
            self._there.record()

    def read(self) -> list[int]:
        """Wait for the copy and return the tokens."""
        if self._there is not None:
            self._there.synchronize()
        return self._tokens.tolist()


class RequestPrefetcher:
    """Yields the requests in order; a thread claims the next batch ahead of time."""

    def __init__(
        self, batches: Iterable[Sequence[DecodeRequest]], beside: ThreadPoolExecutor
    ) -> None:
        self._batches = iter(batches)
        self._beside = beside
        self._here: deque[DecodeRequest] = deque()
        self._next: Future[Sequence[DecodeRequest] | None] | None = None
        self._ended = False

    def take(self, *, wait: bool) -> DecodeRequest | None:
        """Return the next row; None when there is no other, or when it has to be waited for and
        `wait` is not set. One batch at most is here before it is asked for."""
        while not self._here and not self._ended:
            self._ask()
            assert self._next is not None
            if not (wait or self._next.done()):
                return None
            batch, self._next = self._next.result(), None
            self._ended = batch is None
            self._here.extend(batch or ())
        if not self._ended:
            self._ask()
        return self._here.popleft() if self._here else None

    def _ask(self) -> None:
        if self._next is None:
            self._next = self._beside.submit(next, self._batches, None)


@contextmanager
def coming(batches: Iterable[Sequence[DecodeRequest]]) -> Iterator[RequestPrefetcher]:
    """Yield a prefetcher. After the block, no thread reads `batches` any more."""
    with ThreadPoolExecutor(max_workers=1) as beside:
        yield RequestPrefetcher(batches, beside)


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
        read: Callable[[DecodeRequest], PrefilledSequence],
        shrinking: OomRetry,
        manner: PoolLayout,
        *,
        slots: int,
        late: int = 0,
        overhear: Callable[[SequenceState], None] | None = None,
    ) -> None:
        """Read prompts by `read`, and have them in so many `slots`, or as many as the manner has,
        as long as memory lasts. Tokens are looked at `late` steps after they were made.
        `overhear` is given each row that has said one more."""
        self._overhear = overhear
        self._read = read
        self._shrinking = shrinking
        self._late = late
        self._manner = manner
        self.slots = min(slots, manner.rows)
        self.counted = SlotUsage()
        self._pool: SlotPool | None = None
        self._seats: list[SequenceState | None] = []
        self._made: deque[tuple[PendingTokens, list[SequenceState | None]]] = deque()
        self._again: deque[DecodeRequest] = deque()
        """Preempted requests: they ran when memory ran out and start again."""
        self._alone: deque[DecodeRequest] = deque()
        """Requests that did not fit beside others and will run alone."""
        self._strained = False
        """Whether the last prefill beside running sequences ran out of memory."""

    def run(self, rows: RequestPrefetcher) -> Iterator[SequenceState | None]:
        """Yield each row when it has ended, and None when others have to be waited for. Rows that
        do not fit even alone are left out."""
        while True:
            self._retire()
            yield from self._fill(rows)
            if any(self._seats):
                yield from self._advance()
            elif self._alone:
                self._leave()
                yield from self._by_itself(self._alone.popleft())
            else:
                break
        self._leave()

    def alone(self, asked: DecodeRequest) -> SequenceState:
        """Decode one request in a one-slot pool. Raises out-of-memory errors."""
        lone = InflightScheduler(
            self._read, self._shrinking, self._manner, slots=1, late=self._late
        )
        lone.counted = self.counted
        flight = lone._assign_slot(asked, self._read(asked))
        while flight.ended is None and not asked.is_withdrawn:
            lone._step()
            for _ in lone._hear():
                pass
        return flight

    def _retire(self) -> None:
        """Free the slots of withdrawn requests."""
        for slot, flight in enumerate(self._seats):
            if flight is not None and flight.asked.is_withdrawn:
                flight.ended = "length"  # of steps that were not looked at, too
                self._seats[slot] = None
                assert self._pool is not None
                self._pool.clear(slot)

    def _by_itself(self, asked: DecodeRequest) -> Iterator[SequenceState]:
        key = asked.member.key
        made = self._shrinking.run_batch([asked], lambda _: key, lambda _: self.alone(asked))
        for _, flight in made:
            if not asked.is_withdrawn:
                yield flight

    def _fill(self, rows: RequestPrefetcher) -> Iterator[SequenceState | None]:
        """Admit requests into free slots. Yield sequences that end with their first token."""
        while not self._seats or None in self._seats:
            if self._alone and not any(self._seats):
                return
            asked = self._again.popleft() if self._again else rows.take(wait=False)
            if asked is None and not any(self._seats):
                yield None
                asked = rows.take(wait=True)
            if asked is None:
                return
            if asked.is_withdrawn:
                continue
            flight = self._begin(asked)
            if flight is not None and flight.ended is not None:
                yield flight

    def _begin(self, asked: DecodeRequest) -> SequenceState | None:
        """Prefill a request and put it into a slot. Return None on out of memory."""
        busy = any(self._seats)
        try:
            read, words, fault = self._shrinking.attempt(partial(self._read, asked))
        except UsageError as error:
            if not asked.member.settings and not isinstance(error, ContextExceeded):
                raise
            return SequenceState.refused(asked, error)
        if fault is not None:
            self._shrinking.fail(asked, fault)
            return None
        if words is not None:
            self._alone.append(asked)
            if self._strained:
                self._shrink_after_oom(words)
            self._strained = busy
            return None
        self._strained = False
        sat, words, fault = self._shrinking.attempt(lambda: self._assign_slot(asked, read.pop()))
        if fault is not None:
            self._part([asked])
            return None
        if words is not None:
            self._again.appendleft(asked)
            self._shrink_after_oom(words)
            return None
        return sat.pop()

    def _assign_slot(self, asked: DecodeRequest, row: PrefilledSequence) -> SequenceState:
        """Put a prefilled sequence into a slot, unless its first token ends it."""
        flight = SequenceState.of(asked, row)
        token = flight.choose(row.logits)
        if not flight.hear(int(token)):
            self._ensure_pool(row, flight.most)
            assert self._pool is not None
            slot = self._seats.index(None)
            self._pool.put(slot, row, token.unsqueeze(1))
            self._seats[slot] = flight
        return flight

    def _ensure_pool(self, row: PrefilledSequence, most: int) -> None:
        """Create or resize the pool so that the row fits. A pool at least twice as wide as needed
        is narrowed, because every step computes all of it."""
        longest = max([most, *(flight.most for flight in self._seats if flight is not None)])
        columns = self._manner.columns(longest)
        if self._pool is None:
            self._seats = [None] * self.slots
            self._pool = SlotPool(row, self._manner.pool(self.slots, columns))
        elif not columns <= self._pool.shape.columns < 2 * columns:
            self._pool.resize(columns)

    def _advance(self) -> Iterator[SequenceState]:
        """Run one decode step. Yield the sequences that ended."""
        _, words, fault = self._shrinking.attempt(self._step)
        if fault is not None:
            self._part([])
            return
        if words is not None:
            self._shrink_after_oom(words)
            return
        if len(self._made) > self._late:
            yield from self._hear()

    def _step(self) -> None:
        assert self._pool is not None
        logits = self._pool.step()
        with torch.inference_mode():
            tokens = logits.argmax(-1)
            for slot, flight in enumerate(self._seats):
                if flight is not None and len(flight.processors):
                    tokens[slot] = flight.choose(logits[slot : slot + 1])[0]
        self._pool.feed(tokens)
        self._made.append((PendingTokens(tokens), list(self._seats)))  # the other rows are nobody's
        self.counted.steps += len(self._seats)

    def _hear(self) -> Iterator[SequenceState]:
        """Read the tokens of the oldest pending step. Yield the sequences that they end."""
        assert self._pool is not None
        heard, flights = self._made.popleft()
        for slot, (flight, token) in enumerate(zip(flights, heard.read(), strict=False)):
            if flight is None or flight.ended is not None:
                continue
            self.counted.used += 1
            if flight.hear(token):
                self._seats[slot] = None
                self._pool.clear(slot)
                self._shrinking.note_success()
                yield flight
            elif self._overhear is not None:
                self._overhear(flight)

    def _part(self, more: Sequence[DecodeRequest]) -> None:
        """Restart the running sequences and `more`, each alone: the model raises on one."""
        rows = [flight.asked for flight in self._seats if flight is not None]
        self._alone.extend([*rows, *more])
        self._leave()

    def _shrink_after_oom(self, words: str) -> None:
        """Reduce the slots after out of memory, and restart the running sequences."""
        rows = [flight.asked for flight in self._seats if flight is not None]
        self._leave()
        release_memory()
        if self._manner.aligned:  # fewer slots would take as much
            raise MemoryError(words)
        if self.slots > 1:
            self.slots = self._shrinking.shrink(self.slots, words)
            rows += self._alone
            self._alone.clear()
            self._again.extendleft(reversed(rows))
        else:
            self._alone.extend([*rows, *self._again])
            self._again.clear()

    def _leave(self) -> None:
        """Free the pool."""
        self._pool = None
        self._seats = []
        self._made.clear()
