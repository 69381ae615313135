"""Steps that are recorded as a CUDA graph and replayed, with the bits of plain steps."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from stages.decode.engines.inflight import scheduler as scheduler_module
from stages.decode.engines.inflight.pool import SlotPool
from stages.decode.engines.inflight.pool_shape import PLAIN, PoolLayout, PoolShape, columns_for
from stages.decode.engines.inflight.prefill import PrefilledSequence, prefill_row
from stages.decode.engines.inflight.recorded import RecordedPool, StepRecorder, recorder_for
from stages.decode.engines.inflight.slot_check import recorded_difference, reference_of
from stages.memory.cuda_graphs import SWITCH
from stages.models.half_job import HalfJob
from tests.support.fake_capture import faults_of
from tests.support.fake_gpu.graphs import DRIVER, PREVIOUS
from tests.support.fake_gpu.state import GraphFaults
from tests.support.recorded_steps import (
    STEPS,
    come_and_go,
    cuda_graphs,
    judged,
    same,
    shape_for,
    two_sequences,
)
from tests.support.tiny_families import in_slots as slots
from tests.support.tiny_families.verdict import SINGLE

STATES, FULL, ENCODER = "qwen3_5", "qwen2_5_vl", "blip_2:t5"


class Numbers:
    """What a planted fault works with."""

    def __init__(self) -> None:
        self.x = torch.randn(4, 8)
        self.n = torch.arange(4)
        self.mask = torch.rand(4, 8) > 0.5


PLANTED: dict[str, Callable[[Numbers], object]] = {
    "item": lambda p: p.x.sum().item(),
    "bool": lambda p: 1 if (p.x > 0).all() else 0,
    "tolist": lambda p: p.n.tolist(),
    "int": lambda p: int(p.n[0]),
    "nonzero": lambda p: p.mask.nonzero(),
    "index by a mask": lambda p: p.x[p.mask],
    "index by a list": lambda p: p.x[[0, 2]],
    "index made on the host": lambda p: p.x[torch.arange(2)],
    "constant of the host": lambda p: p.x + torch.tensor([1.0] * 8, device=p.x.device),
    "number of the host": lambda p: p.x * torch.tensor(2.0, device=p.x.device),
    "cpu": lambda p: p.x.cpu(),
    "to": lambda p: p.x.to("cpu"),
    "repeat_interleave": lambda p: torch.repeat_interleave(p.x, p.n, dim=0),
    "numpy": lambda p: p.n.numpy(),
}
HARMLESS: dict[str, Callable[[Numbers], object]] = {
    "products": lambda p: torch.nn.functional.softmax(p.x @ p.x.T, -1),
    "factor": lambda p: p.x * 2.0,
    "filled by a mask": lambda p: p.x.masked_fill(p.mask, 0.0),
}


@pytest.mark.parametrize("name", [*PLANTED, *HARMLESS])
def test_the_checker_sees_what_a_card_could_not_record(name: str) -> None:
    found = faults_of(Numbers(), {**PLANTED, **HARMLESS}[name])
    assert bool(found) == (name in PLANTED), found


@pytest.mark.in_turn
@pytest.mark.parametrize("variant", [FULL, "gemma3", STATES, "mistral_large4", ENCODER])
def test_replayed_steps_have_the_bits_of_plain_ones(variant: str) -> None:
    """One family for each kind of cache."""
    assert judged(variant) == ({}, "")


NO_SLOTS = {
    *("unlimited_ocr", "qwen4_exp", "qwen4_exp:video", "inkling"),  # caches without a slot version
    *("inkling2", "nemotron_h_omni"),  # not in 16 bit
}
WAITING = {
    **{name: {"shaped"} for name in ("glm5_next", "glm5_next:video", "t5gemma2")},
    "chameleon": {"copies"},
    "step3p7": {"reads", "shaped"},
}
"""Variants whose step a card cannot record → why."""


@pytest.mark.slow
@pytest.mark.parametrize("variant", sorted({*SINGLE} - NO_SLOTS))
def test_every_family_is_recorded_but_those_that_wait_for_the_card(variant: str) -> None:
    faults, reason = judged(variant)
    assert {*faults} == WAITING.get(variant, set()), faults
    # A copy from the host is recorded on a CPU, and not on a card.
    refused = variant in WAITING and WAITING[variant] != {"copies"}
    assert refused == ("when stream is capturing" in reason) == bool(reason), reason


def test_nearly_all_families_are_recorded() -> None:
    assert NO_SLOTS | {*WAITING} <= {*SINGLE}
    assert len(SINGLE) - len(NO_SLOTS) - len(WAITING) >= 120


@pytest.fixture(scope="module")
def states() -> Any:
    """Two sequences of a model with recurrent states, and their logits in a plain pool."""
    row, other = two_sequences(STATES)
    return row, other, come_and_go(SlotPool(row, shape_for(other)), row, other)


@pytest.mark.parametrize(
    ("faults", "reason", "replayed"),
    [
        (GraphFaults(), "", STEPS - 2),
        (GraphFaults(failing=(1,)), DRIVER, 0),
        (GraphFaults(short=(1,)), "CUDA out of memory", 0),
        (GraphFaults(other=(1,)), "other logits", 0),
        (GraphFaults(replay=1), DRIVER, 0),
        (GraphFaults(replay=6), DRIVER, 4),
    ],
)
def test_a_recording_that_fails_costs_no_bit(
    faults: GraphFaults, reason: str, replayed: int, states: Any
) -> None:
    row, other, expected = states
    recorder = StepRecorder()
    with cuda_graphs(faults) as happened:
        found = come_and_go(RecordedPool(row, shape_for(other), recorder), row, other)
    assert same(expected, found)
    assert reason in recorder.reason and bool(reason) == bool(recorder.reason)
    assert PREVIOUS not in recorder.reason
    assert (recorder.replayed, happened.recordings) == (replayed, 1)
    assert happened.modes == ["thread_local"]
    stats = recorder.stats()
    assert stats["recorded"]["steps"] == STEPS and stats["recorded"]["replayed"] == replayed
    assert stats.get("recorded_reason", "") == recorder.reason


class Rebinding(RecordedPool):
    """A pool whose step binds a state anew."""

    def _compute(self) -> torch.Tensor:
        logits = super()._compute()
        layers: Any = self._slot_cache.cache.layers
        for layer in layers:
            for index, state in getattr(layer, "recurrent_states", {}).items():
                layer.recurrent_states[index] = state.clone()
        return logits


def test_a_step_that_binds_its_states_anew_is_not_recorded(states: Any) -> None:
    row, other, expected = states
    recorder = StepRecorder()
    with cuda_graphs() as happened:
        found = come_and_go(Rebinding(row, shape_for(other), recorder), row, other)
    assert same(expected, found)
    assert "binds tensors" in recorder.reason and happened.recordings == 0


def test_a_half_that_was_loaded_again_is_recorded_again(states: Any) -> None:
    row, other, expected = states
    again = replace(other, model=copy.deepcopy(row.model))
    recorder, first = StepRecorder(), SlotPool(row, shape_for(other))
    with torch.no_grad():
        for weight in again.model.parameters():
            weight.mul_(1.5)
    expected = come_and_go(first, row, again)
    with cuda_graphs() as happened:
        found = come_and_go(RecordedPool(row, shape_for(other), recorder), row, again)
        for weight in row.model.parameters():
            assert weight.data_ptr() != 0
    assert same(expected, found) and not recorder.reason
    assert happened.recordings > 1


def test_a_pool_is_recorded_again_once_its_encoder_output_is_wider() -> None:
    row, other = two_sequences(ENCODER)
    encoded = other.encoder_output
    assert encoded is not None
    wide = copy.deepcopy(encoded)
    more = 2 * columns_for(wide.mask.shape[-1]) - wide.mask.shape[-1]
    wide = replace(wide, mask=torch.nn.functional.pad(wide.mask, (0, more), value=1))
    for layer in wide.cache.layers:
        for name in ("keys", "values"):
            part = getattr(layer, name)
            setattr(layer, name, torch.cat([part, part[:, :, :1].expand(-1, -1, more, -1)], 2))
    other = replace(other, encoder_output=wide)
    recorder = StepRecorder()
    expected = come_and_go(SlotPool(row, shape_for(other)), row, other)
    with cuda_graphs() as happened:
        found = come_and_go(RecordedPool(row, shape_for(other), recorder), row, other)
    assert same(expected, found) and not recorder.reason
    assert (happened.recordings, recorder.computed) == (2, 4)


@pytest.mark.in_turn
@pytest.mark.parametrize(
    ("faults", "recordings", "reason"),
    [
        (GraphFaults(), 3, ""),
        pytest.param(GraphFaults(failing=(1,)), 0, DRIVER, marks=pytest.mark.slow),
        (GraphFaults(failing=(2,)), 1, DRIVER),
        pytest.param(GraphFaults(failing=(3,)), 2, DRIVER, marks=pytest.mark.slow),
        pytest.param(GraphFaults(short=(2,)), 1, "CUDA out of memory", marks=pytest.mark.slow),
        pytest.param(GraphFaults(replay=12), 2, DRIVER, marks=pytest.mark.slow),
    ],
)
def test_a_scheduler_whose_pool_grows_and_shrinks_gives_the_same_tokens(
    faults: GraphFaults, recordings: int, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slots, "LIMITS", (6, 4, 9, 8, 5, 9, 8))
    monkeypatch.setattr(slots, "LONGER", (0, 3, 60, 55, 1, 0, 2))
    model, items = slots.rows_of_variant(STATES, torch.bfloat16)
    expected = slots.in_slots(model, items, PLAIN, lag=1)
    recorder = StepRecorder()

    def make(template: PrefilledSequence, shape: PoolShape, _: object) -> SlotPool:
        return RecordedPool(template, shape, recorder)

    monkeypatch.setattr(scheduler_module, "make_pool", make)
    with cuda_graphs(faults) as happened:
        found = slots.in_slots(model, items, PLAIN, lag=1)
    assert found == expected
    assert recorder.recordings == recordings and reason in recorder.reason
    assert {*happened.modes} == {"thread_local"}


def test_the_check_refuses_recordings_that_differ() -> None:
    model, items = slots.rows_of_variant(STATES, torch.bfloat16)
    row, other = (prefill_row(model, *items[at], max_new_tokens=8) for at in (0, 3))
    given = (2, row, other, reference_of(model, *items[0]))
    with cuda_graphs() as happened:
        assert recorded_difference(PLAIN, *given) == ""
    assert happened.recordings == 1 and happened.replays == 11
    with cuda_graphs(GraphFaults(other=(1,))):
        assert recorded_difference(PLAIN, *given) == "a replayed step gives other logits"


def test_steps_are_recorded_on_a_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def reason(**half: Any) -> str | None:
        recorder = recorder_for(HalfJob(model="", **half))
        return None if recorder is None else recorder.reason

    assert reason(device="cpu") is None and reason(device="cuda:0", gguf="a.gguf") is None
    assert reason(device="cuda:0") == ""
    assert "layers are copied" in str(reason(device="cuda:0", offload=True))
    monkeypatch.setenv(SWITCH, "0")
    assert SWITCH in str(reason(device="cuda:0"))
    monkeypatch.setenv(SWITCH, "1")
    assert reason(device="cuda:0") == ""


def test_recorded_pools_have_few_widths_and_none_beyond_the_plan() -> None:
    layout = PoolLayout(rows=8, rounded_to=1088)
    widths = {layout.columns(tokens) for tokens in range(1, 1089)}
    assert sorted(widths) == [*(64, 128, 192, 256, 320, 384, 448, 512, 640, 768, 896, 1024, 1088)]
    for tokens in range(1, 3000):
        assert layout.columns(tokens) >= tokens
        assert layout.columns(tokens) <= max(1088, columns_for(tokens))
    assert layout.columns(2000) == PLAIN.columns(2000) == 2048
    assert PLAIN.columns(600) == 640 and layout.columns(650) == 768
