"""Checks, before the first request, whether a half may decode in slots, and in which layout.

It verifies that decoding in slots gives what `generate` gives, independently of
other slots. It prefills a row and continues it with the tokens that `generate` produced for it. In
one slot of an empty pool the row's logits must equal those of `generate` up to rounding. In a
reused slot, next to other rows, and in a pool of another shape they must be bit-identical. If the
check fails, or the half cannot be run in slots, the `transformers` engine takes over if the job
allows it.

On a GPU the rounding of a product may depend on its number of rows, so every job with a half
computes the same number of rows in a decode step. The store has a verdict on each number that
passed:

1. The first job's check tries the numbers of GPU_STEP_ROWS, the largest first, and takes the first
   in which rows do not depend on each other.
2. The job stores this number. Later jobs check it alone.
3. If that check fails, for example after an update of torch, the job stores the next smaller number
   that passes. The smallest stored number counts.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import torch

from artifacts.records.store import open_store
from artifacts.wording import counted
from stages.decode.chunked_prefill import relative_difference, tolerance
from stages.decode.confidence import are_finite
from stages.decode.engines import EngineSpec, engines_for
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
from stages.decode.engines.inflight.prefill import PrefilledSequence
from stages.decode.engines.inflight.recorded import StepRecorder, make_pool
from stages.decode.engines.inflight.request_prefill import RequestPrefill
from stages.decode.generation import DecodeJob
from stages.decode.protocol import DecodeRequest
from stages.memory.oom_retry import catch_oom, release_memory
from stages.models.finite import not_finite
from stages.models.gguf import ROWS as GGUF_ROWS
from stages.models.half_job import HalfJob
from stages.models.halves.absent import NeedsWeights
from stages.models.halves.generate import generate, new_tokens, prompt_in
from stages.models.protocols import Half, Tree
from stages.process.checks import ROWS, Verdicts
from stages.process.exit_diagnosis import out_of_memory


def step_rows_to_check(verdicts: Verdicts, half: HalfJob) -> tuple[int, ...]:
    """Return the numbers of rows to check, the best first: all, or from the stored one
    downwards."""
    passed = [int(v.about["rows"]) for v in verdicts.of(ROWS, {"half": half.digest})]
    return tuple(rows for rows in GPU_STEP_ROWS if rows <= min(passed, default=rows))


def has_fixed_rows(half: HalfJob) -> bool:
    """Return whether every job with this half computes the same number of rows in a step."""
    return half.device != "cpu"


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
    half: Half, inputs: Mapping[str, Tree], features: Mapping[str, Tree], **options: Any
) -> Reference:
    """Return the first tokens and logits of `generate`."""
    lengths = {"max_new_tokens": STEPS + 1, "min_new_tokens": STEPS + 1}
    kwargs = {**options, **lengths, "return_dict_in_generate": True, "output_logits": True}
    generated: Any = generate(half, inputs, features, **kwargs)
    tokens = new_tokens(generated.sequences, prompt_in(half, inputs))[0].tolist()
    return Reference(tokens, generated.logits)


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
            checked = _check_layout_in(layout, job_slots, row, other, reference)
            if not checked.reason or checked.out_of_memory:
                return replace(checked, rejected=rejected)
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
        results, message = catch_oom(partial(check_layout, row, other, reference, *pools))
        if message is None:
            return replace(results.pop(), layout=layout)
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
        difference = relative_difference(expected, [logits.float() for logits in alone])
        if difference > ROUNDINGS * tolerance(row.model.dtype):
            return EngineCheck(reason=f"its output differs in slots, by {difference:.1e}")
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


BATCH_WASTE = 0.55
"""Share of the rows of a batch that wait for its longest caption. Measured with the demo's
captions: `python -m benchmarks.inflight`."""
LONGER_SUFFIX = " Then tell what else there is to be seen, and where."
"""Appended to a prompt to get a prompt of another length."""


class SlotCheck:
    """The check of one half: its result, how long it took, and the numbers of rows that passed."""

    def __init__(
        self,
        job: DecodeJob,
        engine: EngineSpec,
        prefill: RequestPrefill,
        recorder: StepRecorder | None,
    ) -> None:
        """`recorder` records the steps of the half; the check stops it if they cannot be
        recorded."""
        self._job = job
        self._engine = engine
        self._prefill = prefill
        self._recorder = recorder
        self._verdicts: Verdicts | None = None
        """Those on rows of a step; None on a CPU, where their number depends on the job."""
        if has_fixed_rows(job.half):
            self._verdicts = Verdicts(open_store(job.store), job.half.device)
        self.result = EngineCheck(reason="not checked")
        self.seconds = 0.0
        self.no_prefix_reason = ""
        """Why prompts are prefilled whole although the engine can share prefixes."""

    def run(self, request: DecodeRequest) -> EngineCheck:
        """Check with this request."""
        began = time.monotonic()
        self.result = self._check(request)
        self.seconds += time.monotonic() - began
        release_memory()  # the check's pools are no longer needed
        return self.result

    def caption_fields(self) -> dict[str, int]:
        """Return the rows of a step for a caption's record. On a CPU its bytes do not depend on
        them, so nothing is recorded."""
        if self.result.reason or self._verdicts is None:
            return {}
        return {"rows": self.result.layout.rows}

    def _check(self, request: DecodeRequest) -> EngineCheck:
        if self._job.kv:
            return EngineCheck(reason="an offloaded or quantized KV cache is not supported")
        precision = self._job.half.precision
        if precision in self._engine.refused_precisions:  # the check's inputs may have no outliers
            return EngineCheck(reason="8-bit products depend on all rows")
        plain = request.item._replace(settings="")
        request = request._replace(item=plain, work=None)
        longer = plain._replace(prompt=plain.prompt + LONGER_SUFFIX)
        pair = (request, request._replace(item=longer))
        if self._prefill.prefix is not None:
            try:
                checked = self._prefill.half.call(partial(self._check_pair, *pair))
                if not checked.reason:
                    return checked
                self.no_prefix_reason = checked.reason
            except Exception as error:  # a model family may raise any error on unsupported input
                if out_of_memory(error) or isinstance(error, NeedsWeights):
                    raise
                self.no_prefix_reason = f"{type(error).__name__}: {error}"[:200]
            self._prefill.prefix = None
            release_memory()
        try:
            return self._prefill.half.call(partial(self._check_pair, *pair))
        except UnsupportedCacheError as error:
            return EngineCheck(reason=str(error))

    def _check_pair(self, request: DecodeRequest, longer: DecodeRequest, half: Half) -> EngineCheck:
        inputs, features, options = self._prefill.inputs(half, request)
        reference = reference_of(half, inputs, features, **options)
        if not all(map(are_finite, reference.logits)):  # no two of them would be the same
            raise not_finite(self._job.half)
        row, other = (self._prefill.row(one, half) for one in (request, longer))
        is_only_engine = len(engines_for(self._job.engine)) == 1
        slots = slot_count(self._job)
        checked = choose_layout(slots, row, other, reference, self._rows_to_check(row))
        if checked.out_of_memory and is_only_engine:
            raise MemoryError(checked.reason)
        if self._verdicts is not None and not checked.reason:
            passed, job = checked.layout.rows, self._job.half
            text = f"{job.title}: {passed} rows of a decoding step do not depend on each other"
            about = {"half": job.digest, "rows": passed}
            self._verdicts.keep(ROWS, about, {"holds": True}, text)
            if not is_only_engine and not self._engine.by_chunk:
                checked = self._compare_with_batches(checked)
        if self._recorder and not self._recorder.reason and not checked.reason:
            check = partial(recorded_difference, checked.layout, slots, row, other, reference)
            reasons, message = catch_oom(check)
            if reason := message or "".join(reasons):
                self._recorder.stop(reason)
            else:
                columns = columns_for(self._job.sequence_tokens)
                checked = replace(checked, layout=replace(checked.layout, rounded_to=columns))
        return checked

    def _rows_to_check(self, row: PrefilledSequence) -> Sequence[int]:
        """Return the fixed numbers of rows to check, the best first; none on a CPU."""
        if self._job.half.gguf:
            return (GGUF_ROWS,)
        half, verdicts = self._job.half, self._verdicts
        rows = () if verdicts is None else step_rows_to_check(verdicts, half)
        return (MIN_STEP_ROWS,) if rows and pays_for_rows(row) else rows

    def _compare_with_batches(self, checked: EngineCheck) -> EngineCheck:
        """Return the check with a reason against slots if batches generate more tokens per step,
        although their rows wait for the longest. What is left to do does not count, so that a
        resumed run chooses the same."""
        batch, rows = self._job.fallback_batch, min(self._job.rung_slots, checked.layout.rows)
        if batch * (1 - BATCH_WASTE) <= rows:
            return checked
        share = f"{batch} x {1 - BATCH_WASTE:.0%}"
        why = f"batches of {batch} generate more tokens per step: {share} against {rows}"
        return replace(checked, reason=why)


def slot_count(job: DecodeJob) -> int:
    """Return the number of slots: that of the job, else the largest batch size."""
    return job.slots or max((len(batch) for batch in job.batches), default=1)
