"""Steps of pools of tiny models: whether a card could record them, and whether replayed ones give
the bits of those that are computed one by one."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch

from stages.decode.engines.inflight.pool import SlotPool
from stages.decode.engines.inflight.pool_shape import PoolShape, columns_for
from stages.decode.engines.inflight.prefill import PrefilledSequence, prefill_row
from stages.decode.engines.inflight.recorded import RecordedPool, StepRecorder
from stages.models.halves.features import encode
from tests.support.fake_capture import faults_of
from tests.support.fake_gpu import graphs
from tests.support.fake_gpu.graphs import Happened
from tests.support.fake_gpu.state import GraphFaults
from tests.support.tiny_families import FAMILIES
from tests.support.tiny_families.in_slots import cast, greedy, longer

ROWS = 8
SLOTS = 3
"""Fewer than rows, so that some rows are unused."""
STEPS = 10
NEW_TOKENS = 16
LONGER = 9
"""Tokens that the second sequence has more than the first."""


@contextmanager
def cuda_graphs(faults: GraphFaults | None = None) -> Iterator[Happened]:
    """Have torch.cuda record and replay on the CPU; yields what happens."""
    happened = Happened(faults=lambda: faults or GraphFaults())
    replaced = {**graphs.REPLACED, "synchronize": lambda *_: None}
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(graphs, "happened", happened))
        for name, thing in replaced.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, thing))
        yield happened


def two_sequences(
    variant: str, dtype: torch.dtype = torch.bfloat16
) -> tuple[PrefilledSequence, PrefilledSequence]:
    """A prefilled sequence of a variant of a family, and a longer one."""
    torch.manual_seed(0)
    model, inputs = FAMILIES[variant]()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Casting complex values to real")
        model, inputs = greedy(model.to(dtype)), cast(inputs, dtype)
    features = encode(model, inputs)
    with torch.inference_mode():
        row = prefill_row(model, inputs, features, max_new_tokens=NEW_TOKENS)
        more = longer(inputs, LONGER)
        return row, prefill_row(model, more, features, max_new_tokens=NEW_TOKENS)


def shape_for(sequence: PrefilledSequence) -> PoolShape:
    """The shape of a pool that has room for a sequence."""
    return PoolShape(rows=ROWS, slots=SLOTS, columns=columns_for(sequence.tokens + NEW_TOKENS))


def come_and_go(
    pool: SlotPool, row: PrefilledSequence, other: PrefilledSequence
) -> list[torch.Tensor]:
    """The logits of the running sequences at each step, while they begin, end, and take slots that
    were used before."""
    first, second = (each.logits.argmax(-1, keepdim=True) for each in (row, other))
    events: dict[int, list[Callable[[], None]]] = {
        0: [lambda: pool.put(0, row, first)],
        2: [lambda: pool.put(1, other, second)],
        4: [lambda: pool.clear(0)],
        5: [lambda: pool.put(0, other, second), lambda: pool.put(SLOTS - 1, row, first)],
        7: [lambda: pool.clear(1)],
    }
    found = []
    for at in range(STEPS):
        for happen in events.get(at, ()):
            happen()
        logits = pool.step()
        found.append(logits[pool._active.bool()].clone())
        pool.set_tokens(logits.argmax(-1))
    return found


def same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def judged(variant: str) -> tuple[dict[str, Any], str]:
    """What would keep a card from recording a step of a variant; and why its replayed steps are
    not those of a plain pool, or nothing."""
    row, other = two_sequences(variant)
    plain = SlotPool(row, shape_for(other))
    expected = come_and_go(plain, row, other)
    faults = faults_of(plain, lambda pool: pool.step())
    recorder = StepRecorder()
    with cuda_graphs():
        found = come_and_go(RecordedPool(row, shape_for(other), recorder), row, other)
    if not same(expected, found):
        return faults, "other logits"
    if not recorder.reason and recorder.replayed != STEPS - 2:
        return faults, f"{recorder.replayed} of {STEPS} steps are replayed"
    return faults, recorder.reason
