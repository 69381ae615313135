"""How many rows a step of slots has on a GPU: the most that do not depend on each other."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from artifacts.records.store import open_store
from stages.decode.engines.inflight import slot_check
from stages.decode.engines.inflight.pool import pays_for_rows
from stages.decode.engines.inflight.pool_shape import GPU_STEP_ROWS
from stages.decode.engines.inflight.prefill import prefill_row
from stages.decode.engines.inflight.slot_check import step_rows_to_check
from stages.models.half_job import HalfJob
from stages.models.halves.features import encode
from stages.process.checks import ROWS, Verdicts
from tests.support.tiny_families import FAMILIES
from tests.support.tiny_families.in_slots import greedy
from tests.support.waves import OTHER, THIRD, Wave, in_slots, mixed_wave, noted

linear = F.linear


def tiled(height: int) -> Any:
    """Products whose rows from `height` on are summed in two parts, as in another tile."""

    def product(x: torch.Tensor, weight: torch.Tensor, bias: Any = None) -> torch.Tensor:
        made = linear(x, weight, bias)
        if len(x) <= height or x.shape[1] > 1:  # a prompt, or few rows
            return made
        half = x.shape[-1] // 2
        first, second = (
            linear(x[height:, :, at].float(), weight[:, at].float())
            for at in (slice(half), slice(half, None))
        )
        late = (first + second).to(made.dtype)
        made[height:] = late if bias is None else late + bias
        return made

    return product


@pytest.fixture(autouse=True)
def rows_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slot_check, "has_fixed_rows", lambda half: True)


def verdicts(wave: Wave) -> Verdicts:
    return Verdicts(open_store(wave.store), "cpu")


def tried(wave: Wave, namespace: str = OTHER, **more: Any) -> dict[str, Any]:
    return noted(in_slots(wave, namespace, **{"engine": "auto", **more}))


@pytest.mark.slow
@pytest.mark.parametrize(("height", "rows"), [(64, 64), (20, 16), (40, 32), (8, 8)])
def test_the_largest_number_that_passes_is_chosen_and_kept(
    height: int, rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wave = mixed_wave(tmp_path, dtype="bfloat16")
    monkeypatch.setattr(F, "linear", tiled(height))
    found = tried(wave, slots=64)
    assert (found["engine"], found["rows"], found["slots"]) == ("inflight", rows, rows)
    assert ("rows_reason" in found) == (rows < 64)
    assert {each["rows"] for each in wave.captions(OTHER)} == {rows}
    # Later jobs keep the number, whatever their size, and whatever the kernels allow by then.
    monkeypatch.setattr(F, "linear", linear)
    found = tried(wave, THIRD, slots=2)
    assert (found["rows"], found["slots"]) == (rows, 2)
    texts = [[each["caption"] for each in wave.captions(name)] for name in (OTHER, THIRD)]
    assert texts[0] == texts[1]


@pytest.mark.slow
def test_a_number_that_no_longer_passes_is_replaced_by_a_smaller_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wave = mixed_wave(tmp_path, dtype="bfloat16")
    assert tried(wave, slots=64)["rows"] == 64
    monkeypatch.setattr(F, "linear", tiled(40))
    found = tried(wave, THIRD, slots=64)
    assert found["rows"] == 32 and "64 rows" in found["rows_reason"]
    assert step_rows_to_check(verdicts(wave), HalfJob(model="")) == (32, 16, 8)


@pytest.mark.slow
def test_stored_captions_are_accepted_whatever_their_number_of_rows(tmp_path: Path) -> None:
    wave = mixed_wave(tmp_path, dtype="bfloat16")
    tried(wave, slots=8)
    records = wave.record_set("captions", OTHER)
    records.remove(["caption-3"])
    fewest = min(GPU_STEP_ROWS)
    verdicts(wave).keep(ROWS, {"half": "", "rows": fewest}, {"holds": True}, "")
    tried(wave, slots=8)
    assert [each["rows"] for each in wave.captions(OTHER)] == [64] * 3 + [8] + [64] * 6


@pytest.mark.slow
@pytest.mark.parametrize("left", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_larger_batches_are_chosen_where_they_make_more_tokens(left: int, tmp_path: Path) -> None:
    wave = mixed_wave(tmp_path, dtype="bfloat16")
    wave.batches = [wave.batches[0][:left]]  # a resumed run chooses the same
    found = tried(wave, slots=left, fallback_batch=32, rung_slots=8)
    assert found["engine"] == "transformers" and "32 x 45% against 8" in found["engine_reason"]
    assert "rows" not in wave.captions(OTHER)[0]
    found = tried(wave, THIRD, slots=left, fallback_batch=16, rung_slots=8)
    assert found["engine"] == "inflight"


@pytest.mark.parametrize(
    ("variant", "pays"),
    [("qwen2_5_vl", False), ("qwen3_vl_moe", True), ("qwen3_5", True), ("t5gemma2", True)],
)
def test_models_whose_rows_cost_memory_have_few(variant: str, pays: bool) -> None:
    torch.manual_seed(0)
    model, inputs = FAMILIES[variant]()
    row = prefill_row(greedy(model), inputs, encode(model, inputs), max_new_tokens=8)
    assert pays_for_rows(row) == pays
