"""Checks before use that decoding in slots gives what `generate` gives, independently of other
slots.

A row is prefilled and then continued with the tokens that `generate` gave it. In one slot of an
empty pool its logits must equal those of `generate` up to rounding. In a reused slot, next to other
rows, and in a pool of another shape they must be bit-identical.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

import torch

from artifacts.errors import PenstockError
from artifacts.plurals import counted
from stages.decode.engines.inflight.cache_layers import UnsupportedCacheError
from stages.decode.engines.inflight.pool import Pool, make_pool
from stages.decode.engines.inflight.pool_shape import (
    CHECK_TOKENS,
    MIN_CHECK_SLOTS,
    MIN_STEP_ROWS,
    PLAIN,
    PoolLayout,
    PoolShape,
    candidate_layouts,
    check_shapes,
)
from stages.decode.engines.inflight.prefill import PrefilledSequence, select_token_ids
from stages.decode.prefill_options import relative_difference, tolerance
from stages.memory.oom_retry import catch_oom
from stages.models.halves.absent import NeedsWeights
from stages.models.halves.inject_features import generate, new_tokens, prompt_in
from stages.process.exit_diagnosis import out_of_memory

BEFORE = 2
"""Tokens that the previous sequence of a slot generates."""
STEPS = CHECK_TOKENS - BEFORE
"""Number of compared tokens. Errors in masks or positions show at the first one."""
ROUNDINGS = 2
"""Allowed difference, as a multiple of that of chunked prefill: later tokens are rounded one by
one."""


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


@dataclass(frozen=True, kw_only=True, slots=True)
class ReferenceOutput:
    """The output of `generate` for one row alone."""

    tokens: Sequence[int]
    logits: Sequence[torch.Tensor]
    """The logits that selected each token, of shape [1, vocabulary]."""


def reference_of(
    half: Any, inputs: Mapping[str, Any], features: Mapping[str, Any], **options: Any
) -> ReferenceOutput:
    """Return the first tokens and logits of `generate`."""
    lengths = {"max_new_tokens": STEPS + 1, "min_new_tokens": STEPS + 1}
    kwargs = {**options, **lengths, "return_dict_in_generate": True, "output_logits": True}
    made: Any = generate(half, inputs, features, **kwargs)
    tokens = new_tokens(made.sequences, prompt_in(half, inputs))[0].tolist()
    return ReferenceOutput(tokens=tokens, logits=made.logits)


def choose_layout(
    job_slots: int,
    row: PrefilledSequence,
    other: PrefilledSequence,
    reference: ReferenceOutput,
    *,
    is_only_engine: bool,
    step_rows: Sequence[int] = (),
) -> EngineCheck:
    """Return the first layout that passes, checked with two sequences of different lengths. If none
    passes, return the result of the first layout. `is_only_engine` is whether no other engine may
    run. `step_rows` are the fixed numbers of rows to try; empty: by the slots."""
    candidates = candidate_layouts(
        job_slots,
        compiled=row.step is not None,
        is_only_engine=is_only_engine,
        step_rows=step_rows,
    )
    first = _check_layout_in(next(candidates), job_slots, row, other, reference)
    if not first.reason or first.out_of_memory:
        return first
    rejected = f"not {counted(first.layout.rows, 'row')}: {first.reason}" if step_rows else ""
    for layout in candidates:
        if first.depends_on_pool_size or (step_rows and first.depends_on_slot) or layout.aligned:
            found = _check_layout_in(layout, job_slots, row, other, reference)
            if not found.reason or found.out_of_memory:
                return replace(found, rejected=rejected)
    return first


def _check_layout_in(
    layout: PoolLayout,
    job_slots: int,
    row: PrefilledSequence,
    other: PrefilledSequence,
    reference: ReferenceOutput,
) -> EngineCheck:
    """Check one layout in pools with `job_slots` slots, or with fewer slots when memory runs
    out."""
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
    reference: ReferenceOutput,
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
        if row.step is not None and isinstance(error, PenstockError):
            raise  # a compiler's own message, and no other engine may run
        return EngineCheck(reason=f"error in slots: {type(error).__name__}: {error}"[:200])


def _teacher_force(
    row: PrefilledSequence,
    reference: ReferenceOutput,
    pool: Pool,
    slot: int,
    other: PrefilledSequence | None = None,
) -> list[torch.Tensor]:
    """Return the logits of the sequence in this slot, token by token. `other` is in all other
    slots, and was in this slot before."""
    last = torch.zeros(pool.shape.rows, dtype=torch.long, device=row.ids.device)
    if other is not None:
        for index in range(pool.shape.slots):
            pool.put(index, other, select_token_ids(other, other.ids, other.logits))
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


def _same(first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]) -> bool:
    return all(torch.equal(left, right) for left, right in zip(first, second, strict=True))
