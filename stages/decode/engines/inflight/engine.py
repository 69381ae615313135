"""The `inflight` engine: continuous batching in a fixed pool of KV-cache slots.

Each prompt is prefilled alone and then decoded in a slot until its caption ends. No request waits
for a batch, and a caption's bytes depend only on its own sequence.

A check before use verifies that decoding in slots gives what `generate` gives, independently of
other slots. It prefills a row and continues it with the tokens that `generate` produced for it. In
one slot of an empty pool the row's logits must equal those of `generate` up to rounding. In a
reused slot, next to other rows, and in a pool of another shape they must be bit-identical. If the
check fails, or the half cannot be run in slots, the `transformers` engine takes over if the job
allows it.

On a GPU the rounding of a product may depend on its number of rows, so every job with a half
computes the same number of rows in a decode step. The store holds this number, one per half,
precision and kind of GPU:

1. The first job's check tries the numbers of GPU_STEP_ROWS, the largest first, and takes the first
   in which rows do not depend on each other.
2. The job stores this number. Later jobs check it alone.
3. If that check fails, for example after an update of torch, the job stores the next smaller number
   that passes. The smallest stored number counts.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import torch

from artifacts.errors import UsageError
from artifacts.records.packs import Record, RecordSet
from artifacts.records.store import open_store
from artifacts.wording import counted
from stages.decode.chunked_prefill import relative_difference, tolerance
from stages.decode.confidence import are_finite
from stages.decode.engines import AUTO, engines_for
from stages.decode.engines.inflight.cache_layers import UnsupportedCacheError
from stages.decode.engines.inflight.pool import Pool, pays_for_rows
from stages.decode.engines.inflight.pool_shape import (
    CHECK_TOKENS,
    GPU_STEP_ROWS,
    MIN_CHECK_SLOTS,
    MIN_STEP_ROWS,
    PLAIN,
    PoolLayout,
    PoolShape,
    candidate_layouts,
    check_shapes,
    columns_for,
)
from stages.decode.engines.inflight.prefill import (
    PrefilledSequence,
    SharedPrefix,
    prefill_row,
)
from stages.decode.engines.inflight.recorded import StepRecorder, make_pool, recorder_for
from stages.decode.engines.inflight.scheduler import (
    InflightScheduler,
    RequestPrefetcher,
    SequenceState,
    prefetch_requests,
)
from stages.decode.engines.transformers import TransformersEngine
from stages.decode.generate_kwargs import GenerateKwargs
from stages.decode.generation import DecodeJob
from stages.decode.prompts import prompts_for
from stages.decode.protocol import CaptionOutput, DecodeRequest, OnPartial
from stages.memory.oom_retry import OomRetry, catch_oom, release_memory, try_items
from stages.models.finite import not_finite
from stages.models.gguf import ROWS
from stages.models.halves.absent import NeedsWeights
from stages.models.halves.features import Features
from stages.models.halves.generate import generate, new_tokens, prompt_in
from stages.process.exit_diagnosis import out_of_memory

KIND = "rows"


def step_rows_to_check(records: RecordSet) -> tuple[int, ...]:
    """Return the numbers of rows to check, the best first: all, or from the stored one downwards.
    `records` are of one half."""
    known = [int(records.meta(key)["rows"]) for key in sorted(records.keys())]
    return tuple(rows for rows in GPU_STEP_ROWS if rows <= min(known, default=rows))


BEFORE = 2
"""Tokens that the previous sequence of a slot generates."""
STEPS = CHECK_TOKENS - BEFORE
"""Number of compared tokens. Errors in masks or positions show at the first one."""
ROUNDINGS = 2
"""Allowed difference, as a multiple of that of chunked prefill: tokens are rounded one by one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineCheck:
    """The outcome of the check."""

    reason: str = ""
    """Why the half cannot run in slots; empty if it can."""
    layout: PoolLayout = PLAIN
    """Layout of the pool that passed the check."""
    depends_on_slot: bool = False
    """Whether the check failed because a sequence depends on its slot, or on other slots."""
    depends_on_pool_size: bool = False
    """Whether the check failed only for pools of another size."""
    out_of_memory: bool = False
    """Whether the check ran out of memory."""
    rejected: str = ""
    """Why a larger number of rows was rejected; empty if none was."""


class Reference(NamedTuple):
    """The output of `generate` for one row alone."""

    tokens: Sequence[int]
    logits: Sequence[torch.Tensor]
    """Those that selected each token, of shape [1, vocabulary]."""


def reference_of(
    half: Any, inputs: Mapping[str, Any], features: Mapping[str, Any], **options: Any
) -> Reference:
    """Return the first tokens and logits of `generate`."""
    lengths = {"max_new_tokens": STEPS + 1, "min_new_tokens": STEPS + 1}
    kwargs = {**options, **lengths, "return_dict_in_generate": True, "output_logits": True}
    made: Any = generate(half, inputs, features, **kwargs)
    tokens = new_tokens(made.sequences, prompt_in(half, inputs))[0].tolist()
    return Reference(tokens, made.logits)


def choose_layout(
    job_slots: int,
    row: PrefilledSequence,
    other: PrefilledSequence,
    reference: Reference,
    step_rows: Sequence[int] = (),
) -> EngineCheck:
    """Return the first layout that passes, checked with two sequences of different lengths. If none
    passes, return the result of the first layout. `step_rows` are the fixed numbers of rows to try;
    empty: by the slots."""
    candidates = candidate_layouts(job_slots, step_rows)
    first = _check_layout_in(next(candidates), job_slots, row, other, reference)
    if not first.reason or first.out_of_memory:
        return first
    rejected = f"not {counted(first.layout.rows, 'row')}: {first.reason}" if step_rows else ""
    for layout in candidates:
        if first.depends_on_pool_size or (step_rows and first.depends_on_slot):
            found = _check_layout_in(layout, job_slots, row, other, reference)
            if not found.reason or found.out_of_memory:
                return replace(found, rejected=rejected)
    return first


def _check_layout_in(
    layout: PoolLayout,
    job_slots: int,
    row: PrefilledSequence,
    other: PrefilledSequence,
    reference: Reference,
) -> EngineCheck:
    """Check one layout in pools with `job_slots` slots, or with fewer when memory runs out."""
    tokens = max(row.tokens, other.tokens)
    # With a single slot there are no neighbours, so if no more fit, one is enough.
    candidates = (
        (max(MIN_CHECK_SLOTS, job_slots), False),
        (MIN_CHECK_SLOTS, True),
        (min(MIN_CHECK_SLOTS, job_slots), True),
    )
    for slots, lean in dict.fromkeys(candidates):
        pools = check_shapes(layout, slots, tokens, lean=lean)
        found, message = catch_oom(partial(check_layout, row, other, reference, *pools))
        if message is None:
            return replace(found.pop(), layout=layout)
    return EngineCheck(reason=f"the check ran out of memory: {message}", out_of_memory=True)


def check_layout(
    row: PrefilledSequence,
    other: PrefilledSequence,
    reference: Reference,
    shape: PoolShape,
    other_shape: PoolShape,
) -> EngineCheck:
    """Check two sequences of different lengths in a pool, and in one of another shape. Raises
    out-of-memory errors."""
    try:
        alone = _teacher_force(row, reference, make_pool(row, shape), 0)
        expected = [logits[0].float() for logits in reference.logits[: len(alone)]]
        found = relative_difference(expected, [logits.float() for logits in alone])
        if found > ROUNDINGS * tolerance(row.model.dtype):
            return EngineCheck(reason=f"its output differs in slots, by {found:.1e}")
        last = _teacher_force(row, reference, make_pool(row, shape), shape.slots - 1, other)
        if not _same(alone, last):
            reason = "its output depends on neighbouring slots"
            return EngineCheck(reason=reason, depends_on_slot=True)
        wider = [_teacher_force(row, reference, make_pool(row, other_shape), 0, other)]
        if shape.rows > MIN_STEP_ROWS:  # smaller jobs may have fewer rows, which agree by chance
            alone += _teacher_force(other, reference, make_pool(row, shape), 0)
            wider.append(_teacher_force(other, reference, make_pool(row, other_shape), 0))
        if not _same(alone, list(chain.from_iterable(wider))):
            reason = "its output depends on the pool size"
            return EngineCheck(reason=reason, depends_on_pool_size=True)
        return EngineCheck()
    except UnsupportedCacheError as error:
        return EngineCheck(reason=str(error))
    except Exception as error:  # a model family may raise any error on unsupported input
        if out_of_memory(error) or isinstance(error, NeedsWeights):
            raise
        return EngineCheck(reason=f"error in slots: {type(error).__name__}: {error}"[:200])


def _teacher_force(
    row: PrefilledSequence,
    reference: Reference,
    pool: Pool,
    slot: int,
    other: PrefilledSequence | None = None,
) -> list[torch.Tensor]:
    """Return the logits of the sequence in this slot, token by token. `other` is in all other
    slots, and was in this slot before."""
    last = torch.zeros(pool.shape.rows, dtype=torch.long, device=row.ids.device)
    if other is not None:
        for index in range(pool.shape.slots):
            pool.put(index, other, other.logits.argmax(-1, keepdim=True))
        for _ in range(BEFORE):
            pool.set_tokens(pool.step().argmax(-1))
        pool.clear(slot)
    first, *rest = reference.tokens
    pool.put(slot, row, torch.full_like(row.ids[:1, :1], first))
    seen = [row.logits[0]]
    for token in rest:
        logits = pool.step()
        seen.append(logits[slot].clone())
        last.copy_(logits.argmax(-1))
        last[slot] = token
        pool.set_tokens(last)
    return seen


def recorded_difference(
    layout: PoolLayout,
    slots: int,
    row: PrefilledSequence,
    other: PrefilledSequence,
    reference: Reference,
) -> str:
    """Return why steps of this layout cannot be recorded; empty if two sequences, one of them in a
    slot that was cleared and filled again, have the same logits in a recorded pool as in another.
    Raises out-of-memory errors."""
    recorder = StepRecorder()
    shape, _ = check_shapes(layout, slots, max(row.tokens, other.tokens))

    def logits(pool: Pool) -> list[torch.Tensor]:
        first = _teacher_force(row, reference, pool, 0, other)
        return first + _teacher_force(other, reference, pool, shape.slots - 1, row)

    expected = logits(make_pool(row, shape))
    same = _same(expected, logits(make_pool(row, shape, recorder)))
    return recorder.reason or ("" if same else "a recorded pool gives other logits")


def _same(first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]) -> bool:
    return all(torch.equal(left, right) for left, right in zip(first, second, strict=True))


PARTIAL_INTERVAL_SECONDS = 0.1
"""Minimum time between two partial captions of a sequence."""
PUBLISH_INTERVAL_SECONDS = 1.0
"""How long finished captions wait for others, because each publication is one pack file."""
BATCH_WASTE = 0.55
"""Share of the rows of a batch that wait for its longest caption. Measured with the demo's
captions: `python -m benchmarks.inflight`."""
LONGER_SUFFIX = " Then tell what else there is to be seen, and where."
"""Appended to a prompt to get a prompt of another length."""


class InflightEngine:
    """A language half that generates captions in slots."""

    def __init__(self, job: DecodeJob) -> None:
        self._job = job
        self._transformers = TransformersEngine(job)
        self._check = EngineCheck(reason="not checked")
        self._engine = engines_for(job.engine)[0]
        self._prefix = SharedPrefix() if self._engine.by_chunk else None
        """KV cache of the prefix that prompts of a chunk share; None: no prefix is shared."""
        self._no_prefix_reason = ""
        """Why prompts are prefilled whole although the engine can share prefixes."""
        self._stored_rows: RecordSet | None = None
        """The number of rows per step of this half; None on a CPU, where it depends on the job."""
        if job.rows_namespace:
            self._stored_rows = RecordSet(open_store(job.store), KIND, job.rows_namespace)
        self._recorder = recorder_for(job.half)
        self._scheduler: InflightScheduler | None = None
        self._on_partial: OnPartial | None = None
        self._check_seconds = self._prefill_seconds = 0.0

    def load_info(self) -> dict[str, Any]:
        return self._transformers.load_info()

    def resolve_engine(self, request: DecodeRequest) -> str:
        """Return the name of the engine that will run, after checking slots with this request.
        Raises UsageError if only this engine is allowed and it cannot run."""
        began = time.monotonic()
        self._check = self._run_check(request)
        self._check_seconds += time.monotonic() - began
        release_memory()  # the check's pools are no longer needed
        if not self._check.reason:
            return self._engine.name
        if len(engines_for(self._job.engine)) == 1:
            raise UsageError(
                f"engine {self._engine.name} does not work with this model: {self._check.reason}",
                hint=f"Use --engine {AUTO} or {self._transformers.name}",
            )
        return self._transformers.name

    def refusal(self, request: DecodeRequest) -> UsageError | None:
        return self._transformers.refusal(request)

    def run_stats(self) -> dict[str, Any]:
        found = self._transformers.run_stats()
        found |= {"check_seconds": round(self._check_seconds, 3)}
        if self._check.rejected:
            found |= {"rows_reason": self._check.rejected}
        if self._check.reason:
            return found | {"engine": self._transformers.name, "engine_reason": self._check.reason}
        found |= self.caption_fields() | {"prefill_seconds": round(self._prefill_seconds, 3)}
        if self._scheduler is not None:
            usage = self._scheduler.usage
            found |= {"slots": self._scheduler.slots, "row_steps": usage["row_steps"]}
            found |= {"row_steps_used": usage["row_steps_used"]}
        found |= self._recorder.stats() if self._recorder else {}
        if self._engine.by_chunk:
            found |= {"shared_prefix": self._prefix is not None}
        if self._no_prefix_reason:
            found |= {"shared_prefix_reason": self._no_prefix_reason}
        return found | {"engine": self._engine.name}

    def caption_fields(self) -> dict[str, int]:
        """Return the rows of a step for a caption's record. On a CPU its bytes do not depend on
        them, so nothing is recorded."""
        if self._check.reason or self._stored_rows is None:
            return {}
        return {"rows": self._check.layout.rows}

    def run(
        self, batches: Iterable[Sequence[DecodeRequest]], oom_retry: OomRetry
    ) -> Iterator[tuple[Sequence[DecodeRequest], Sequence[CaptionOutput]]]:
        """Yield captions as they end, those of one interval together."""
        if self._check.reason:
            yield from self._transformers.run(batches, oom_retry)
            return
        with prefetch_requests(batches) as rows:
            yield from self._publish_groups(rows, oom_retry)

    def set_on_partial(self, on_partial: OnPartial) -> None:
        self._on_partial = on_partial

    def generate_batch(self, requests: Sequence[DecodeRequest]) -> Sequence[CaptionOutput]:
        """Return the captions of these requests; each runs alone in a pool."""
        if self._check.reason:
            return self._transformers.generate_batch(requests)
        assert self._scheduler is not None
        return [self._output(self._scheduler.run_alone(one)) for one in requests]

    def _publish_groups(
        self, rows: RequestPrefetcher, oom_retry: OomRetry
    ) -> Iterator[tuple[Sequence[DecodeRequest], Sequence[CaptionOutput]]]:
        self._scheduler = InflightScheduler(
            self._prefill,
            oom_retry,
            self._check.layout,
            slots=slot_count(self._job),
            lag=int(self._job.half.device != "cpu"),
            on_token=self._send_partial if self._on_partial else None,
            recorder=self._recorder,
        )
        ended: list[SequenceState] = []
        since, interval = time.monotonic(), 0.0 if self._job.live else PUBLISH_INTERVAL_SECONDS
        for state in self._scheduler.run(rows):
            if state is not None:
                ended.append(state)
            # Publish before waiting for another process, because that process may wait for these
            # captions.
            if ended and (state is None or time.monotonic() - since >= interval):
                yield self._collect(ended, oom_retry)
                ended, since = [], time.monotonic()
        if ended:
            yield self._collect(ended, oom_retry)

    def _collect(
        self, ended: list[SequenceState], oom_retry: OomRetry
    ) -> tuple[list[DecodeRequest], list[CaptionOutput]]:
        """Return requests and captions of ended sequences, without those whose decoding fails."""
        pairs = []
        for state in ended:
            outputs, message, fault = try_items(partial(self._output, state))
            if message is not None:
                raise MemoryError(message)
            if fault is not None:
                oom_retry.faults.add(state.request, fault)
            pairs += [(state.request, one) for one in outputs]
        return [request for request, _ in pairs], [one for _, one in pairs]

    def _send_partial(self, state: SequenceState) -> None:
        """Send the partial caption of a sequence, at most once per interval."""
        now = time.monotonic()
        if self._on_partial is None or now - state.last_partial_at < PARTIAL_INTERVAL_SECONDS:
            return
        state.last_partial_at = now
        # Skip a sequence whose decoding to text fails: its end reports the error.
        for text in try_items(partial(self._text, state))[0]:
            self._on_partial(state.request, text, len(state.output_ids))

    def _prefill(self, request: DecodeRequest) -> PrefilledSequence:
        began = time.monotonic()
        try:
            return self._transformers.half.call(partial(self._prefill_with, request, bounded=True))
        except BaseException:
            if self._prefix is not None:
                self._prefix.forget()
            raise
        finally:
            self._prefill_seconds += time.monotonic() - began

    def _prefill_with(
        self, request: DecodeRequest, half: Any, *, bounded: bool = False
    ) -> PrefilledSequence:
        inputs, features, options = self._generate_inputs(half, request)
        generate_kwargs = self._transformers.generate_kwargs.of(request.item)
        if bounded:
            items, is_live = [request.item], bool(self._job.live)
            generate_kwargs = generate_kwargs.bounded(half, inputs, items, whole=is_live)
        options["max_new_tokens"] = generate_kwargs.limit
        if self._prefix is not None:
            prefill, item = self._prefix.prefill_from_prefix, request.item
            row = prefill(half, f"{item.features}{item.heard}", inputs, features, **options)
        else:
            row = prefill_row(half, inputs, features, **options)
        stopped = partial(generate_kwargs.stopped, self._transformers.processor)
        return replace(row, stopped=stopped) if generate_kwargs.stop else row

    def _generate_inputs(
        self, half: Any, request: DecodeRequest
    ) -> tuple[dict[str, Any], Features, dict[str, Any]]:
        """Return the inputs, features and keyword arguments of `generate` for one request."""
        processor, row = self._transformers.processor, request.features
        generate_kwargs = self._transformers.generate_kwargs.of(request.item)
        chosen = generate_kwargs.options(half, processor, [request.item])
        prompts = [request.item.prompt]
        inputs = prompts_for(half, processor, [row], prompts, generate_kwargs.generation)
        features = Features.of([row])
        options = self._transformers.prefill_options.options(half, processor, row)
        return inputs, features, options | chosen

    def _run_check(self, request: DecodeRequest) -> EngineCheck:
        if self._job.kv:
            return EngineCheck(reason="an offloaded or quantized KV cache is not supported")
        precision = self._job.half.precision
        if precision in self._engine.refused_precisions:  # the check's inputs may have no outliers
            return EngineCheck(reason="8-bit products depend on all rows")
        plain = request.item._replace(settings="")
        request = request._replace(item=plain, work=None)
        longer = plain._replace(prompt=plain.prompt + LONGER_SUFFIX)
        pair = (request, request._replace(item=longer))
        if self._prefix is not None:
            try:
                result = self._transformers.half.call(partial(self._check_pair, *pair))
                if not result.reason:
                    return result
                self._no_prefix_reason = result.reason
            except Exception as error:  # a model family may raise any error on unsupported input
                if out_of_memory(error) or isinstance(error, NeedsWeights):
                    raise
                self._no_prefix_reason = f"{type(error).__name__}: {error}"[:200]
            self._prefix = None
            release_memory()
        try:
            return self._transformers.half.call(partial(self._check_pair, *pair))
        except UnsupportedCacheError as error:
            return EngineCheck(reason=str(error))

    def _check_pair(self, request: DecodeRequest, longer: DecodeRequest, half: Any) -> EngineCheck:
        inputs, features, options = self._generate_inputs(half, request)
        reference = reference_of(half, inputs, features, **options)
        if not all(map(are_finite, reference.logits)):  # no two of them would be the same
            raise not_finite(self._job.half)
        row, other = (self._prefill_with(each, half) for each in (request, longer))
        is_only_engine = len(engines_for(self._job.engine)) == 1
        slots = slot_count(self._job)
        rows = self._rows_to_check(row)
        found = choose_layout(slots, row, other, reference, rows)
        if found.out_of_memory and is_only_engine:
            raise MemoryError(found.reason)
        if self._stored_rows is not None and not found.reason:
            passed = found.layout.rows
            self._stored_rows.publish([Record(key=f"{passed:03}", meta={"rows": passed})])
            if not is_only_engine and not self._engine.by_chunk:
                found = self._compare_with_batches(found)
        if self._recorder and not self._recorder.reason and not found.reason:
            check = partial(recorded_difference, found.layout, slots, row, other, reference)
            reasons, message = catch_oom(check)
            if reason := message or "".join(reasons):
                self._recorder.stop(reason)
            else:
                columns = columns_for(self._job.sequence_tokens)
                found = replace(found, layout=replace(found.layout, rounded_to=columns))
        return found

    def _rows_to_check(self, row: PrefilledSequence) -> Sequence[int]:
        """Return the fixed numbers of rows to check, the best first; none on a CPU."""
        if self._job.half.gguf:
            return (ROWS,)
        rows = () if self._stored_rows is None else step_rows_to_check(self._stored_rows)
        return (MIN_STEP_ROWS,) if rows and pays_for_rows(row) else rows

    def _compare_with_batches(self, found: EngineCheck) -> EngineCheck:
        """Return the check with a reason against slots if batches generate more tokens per step,
        although their rows wait for the longest. What is left to do does not count, so that a
        resumed run chooses the same."""
        batch, rows = self._job.fallback_batch, min(self._job.rung_slots, found.layout.rows)
        if batch * (1 - BATCH_WASTE) <= rows:
            return found
        share = f"{batch} x {1 - BATCH_WASTE:.0%}"
        why = f"batches of {batch} generate more tokens per step: {share} against {rows}"
        return replace(found, reason=why)

    def _output(self, state: SequenceState) -> CaptionOutput:
        self._transformers.half.confirm()
        assert state.finish_reason is not None
        if state.fault is not None:
            return CaptionOutput("", 0, state.finish_reason, fault=state.fault)
        if not state.confidence.is_finite:
            raise not_finite(self._job.half)
        text = self._text(state)
        stopped = state.stopped is not None and state.stopped(state.output_ids)
        tokens, read = len(state.output_ids), state.prompt_tokens
        output = CaptionOutput(text, tokens, state.finish_reason, read, stopped)
        generate_kwargs, processor = self._settings(state), self._transformers.processor
        place = partial(generate_kwargs.offset_of, processor, state.output_ids, text)
        fields = self._transformers.opened(state.request)
        fields |= generate_kwargs.reasoning(processor, state.output_ids, text)
        return output._replace(fields=fields | state.confidence.fields(place))

    def _text(self, state: SequenceState) -> str:
        return self._settings(state).texts_of(self._transformers.processor, [state.output_ids])[0]

    def _settings(self, state: SequenceState) -> GenerateKwargs:
        return self._transformers.generate_kwargs.of(state.request.item)


def slot_count(job: DecodeJob) -> int:
    """Return the number of slots: that of the job, else the largest batch size."""
    return job.slots or max((len(batch) for batch in job.batches), default=1)
