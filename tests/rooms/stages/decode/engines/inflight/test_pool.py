"""Slots of every kind of layer: tokens are those of a row alone, and its logits are the same to the
last bit, whatever stands beside it and however large the pool is."""

import copy
import functools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from stages.decode.engines.inflight.cache_layers import UnsupportedCacheError
from stages.decode.engines.inflight.pool import SlotPool
from stages.decode.engines.inflight.pool_shape import MIN_STEP_ROWS, PoolShape
from stages.decode.engines.inflight.prefill import PrefilledSequence, prefill_row
from stages.decode.engines.inflight.slot_check import _same, _teacher_force, reference_of
from stages.models.halves.features import Features, encode
from tests.support.tiny_families import FAMILIES
from tests.support.tiny_families.in_slots import (
    LIMITS,
    alone,
    cast,
    float32_depends_on_rows,
    greedy,
    in_slots,
    judged_in_slots,
    longer,
    rows_of_variant,
)
from tests.support.tiny_families.verdict import SINGLE

REFUSED = {
    "florence2": "its output differs in slots",  # its decoder counts positions by the cache
    "step3p7": "its output depends on neighbouring slots",
    "unlimited_ocr": "no slot version of the cache layer",
    **dict.fromkeys(("inkling", "inkling2"), "no slot version of the cache layer"),
    **dict.fromkeys(("qwen4_exp", "qwen4_exp:video"), "unknown tensors in the cache layer"),
    # Their decoder counts distances by columns.
    **dict.fromkeys(("blip_2:t5", "instructblip:t5"), "its output differs in slots"),
    **dict.fromkeys(("instructblipvideo:t5", "paligemma:gemma2"), "its output depends on the pool"),
}
"""Family → why it is not for slots."""
ROUNDED = {"gemma3n", "t5gemma2"}
"""Families that the check rightly rejects in float32 on a processor whose float32 products depend
on the number of rows; they are tried in bfloat16 there."""
QUICK = {
    *REFUSED,
    "qwen2_5_vl",  # positions of three axes
    "gemma3",  # windows beside full attention
    "llama4",  # chunks
    "gemma4",  # layers that share what they remember
    "nemotron_h_omni",  # states, attention and experts
    "mistral_large4",  # an index of what is seen
    "minimax_m3_vl",  # an index that a family keeps in a way of its own
    "glm5_next",  # numbers that hang on how many rows a step has
    "t5gemma2",  # a prompt that goes to an encoder
    "exaone4_5",  # positions that would be counted by the cache
    "janus",  # a generate of its own
    "blip_2",  # embeddings in place of tokens
}


@pytest.mark.in_turn
@pytest.mark.parametrize(
    "variant",
    [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in SINGLE],
)
def test_a_family_says_in_slots_what_each_row_says_alone_or_it_is_known_why_not(
    variant: str,
) -> None:
    rounded = variant in ROUNDED and float32_depends_on_rows()
    found = judged_in_slots(variant, torch.bfloat16 if rounded else torch.float32)
    refused = variant in REFUSED
    assert found.startswith(REFUSED[variant]) if refused else found == "slots"


def test_tokens_that_are_looked_at_late_are_the_same() -> None:
    model, items = rows_of_variant("qwen2_5_vl")
    expected = [alone(model, item, limit) for item, limit in zip(items, LIMITS, strict=True)]
    assert in_slots(model, items, lag=1) == expected


@functools.cache
def rows_in(variant: str, dtype: torch.dtype) -> tuple[PrefilledSequence, PrefilledSequence, Any]:
    """Two rows of unlike length, and what `generate` says of one."""
    torch.manual_seed(0)
    model, inputs = FAMILIES[variant]()
    model = greedy(model.to(dtype))
    inputs = cast(inputs, dtype)
    features: Features = encode(model, inputs)
    row = prefill_row(model, inputs, features, max_new_tokens=8)
    other = prefill_row(model, longer(inputs, 23), features, max_new_tokens=8)
    return row, other, reference_of(model, inputs, features)


SHAPES = [
    *(PoolShape(rows=8, slots=slots, columns=64) for slots in (8, 3, 1)),
    PoolShape(rows=8, slots=2, columns=1088),
    PoolShape(rows=16, slots=16, columns=64),
    PoolShape(rows=32, slots=5, columns=128),
]
SLOW_FP32 = pytest.param(torch.float32, marks=pytest.mark.slow)


@pytest.mark.in_turn
@pytest.mark.parametrize("dtype", [SLOW_FP32, torch.bfloat16])
@pytest.mark.parametrize("variant", ["qwen2_5_vl", "gemma3", "qwen3_5", "qwen3_vl_moe"])
def test_a_row_has_the_same_logits_in_every_pool(variant: str, dtype: torch.dtype) -> None:
    row, other, reference = rows_in(variant, dtype)
    alone = _teacher_force(row, reference, SlotPool(row, SHAPES[0]), 0)
    for shape in SHAPES:
        seat = shape.slots - 1
        last = _teacher_force(row, reference, SlotPool(row, shape), seat)
        assert _same(alone, last), (shape, seat)
        for seat in {0, shape.slots // 2}:
            beside = _teacher_force(row, reference, SlotPool(row, shape), seat, other)
            assert _same(alone, beside), (shape, seat)


@pytest.mark.parametrize("variant", ["qwen2_5_vl", "gemma3", "mistral_large4"])
def test_a_pool_that_is_made_wider_or_narrower_keeps_its_rows(variant: str) -> None:
    row, other, reference = rows_in(variant, torch.float32)
    shape = SHAPES[0]
    whole = _teacher_force(row, reference, SlotPool(row, shape), 1, other)
    pool = SlotPool(row, shape)
    pool.put(0, other, torch.zeros_like(other.ids[:, :1]))
    pool.put(1, row, torch.full_like(row.ids[:, :1], reference.tokens[0]))
    seen = [row.logits[0]]
    for columns, token in zip((64, 256, 64, 128), reference.tokens[1:], strict=True):
        pool.resize(columns)
        logits = pool.step()
        seen.append(logits[1].clone())
        pool.set_tokens(torch.full((8,), token))
    assert _same(whole, seen)


def test_a_row_that_broke_leaves_nothing_to_who_comes_after_it() -> None:
    row, other, reference = rows_in("qwen2_5_vl", torch.float32)
    shape = SHAPES[0]
    whole = _teacher_force(row, reference, SlotPool(row, shape), 0)
    broken = read_row_again(other)
    for layer in broken.cache.layers:
        layer.keys, layer.values = layer.keys * torch.nan, layer.values * torch.nan
    pool = SlotPool(row, shape)
    for slot in range(MIN_STEP_ROWS):
        pool.put(slot, broken, torch.zeros_like(row.ids[:, :1]))
    pool.set_tokens(pool.step().argmax(-1))
    pool.clear(0)
    assert not _teacher_force(row, reference, pool, 0)[-1].isnan().any()
    assert _same(whole, _teacher_force(row, reference, pool, 0))


def read_row_again(row: PrefilledSequence) -> PrefilledSequence:
    """The same row, whose cache may be changed."""
    return replace(row, cache=copy.deepcopy(row.cache))


def test_windows_of_several_widths_fail() -> None:
    row, _, _ = rows_in("gemma3", torch.float32)
    again = read_row_again(row)
    wider = copy.deepcopy(next(layer for layer in again.cache.layers if layer.is_sliding))
    wider.sliding_window += 1
    again.cache.layers.append(wider)
    again = replace(again, direct=(*again.direct, False))
    with pytest.raises(UnsupportedCacheError, match="different widths"):
        SlotPool(again, SHAPES[0])


class Calls(TorchDispatchMode):
    """Counts calls that read a tensor on the host, and bytes that are joined."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.reads: list[str] = []
        self.joined = 0

    def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = call(*args, **(kwargs or {}))
        name = str(call)
        if any(word in name for word in ("is_nonzero", "_local_scalar_dense", "aten.nonzero")):
            self.reads.append(name)
        if name.startswith("aten.cat"):
            self.joined = max(self.joined, made.nbytes)
        return made


@pytest.mark.parametrize(
    ("variant", "direct"),
    [("qwen2_5_vl", True), ("gemma3", True), ("t5gemma2", False), ("mistral_large4", False)],
)
def test_a_step_reads_nothing_on_the_host_and_copies_no_pool(variant: str, direct: bool) -> None:
    row, _, _ = rows_in(variant, torch.bfloat16)
    pool = SlotPool(row, PoolShape(rows=32, slots=2, columns=1024))
    for slot in range(2):
        pool.put(slot, row, row.logits.argmax(-1, keepdim=True))
    with Calls() as calls:
        for _ in range(3):
            pool.set_tokens(pool.step().argmax(-1))
    assert calls.reads == []
    layers: list[Any] = [*pool._slot_cache.cache.layers]
    keys = [layer.keys.nbytes for layer in layers]
    assert all(row.direct) == direct
    assert (calls.joined < max(keys)) == direct
