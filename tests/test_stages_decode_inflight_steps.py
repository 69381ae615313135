"""Steps of slots: those that are compiled, whose captions are those of steps that are not, and how
many rows a step has on a GPU: the most that do not depend on each other.

A compiler of C++ is needed, and takes its time."""

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.exc import TorchDynamoException
from torch._dynamo.utils import counters

from artifacts.errors import UsageError
from stages.decode.engines.inflight.compiled import CompiledStep, graph_note
from stages.decode.engines.inflight.engine import (
    StoredStepRows,
    _same,
    _teacher_force,
    reference_of,
)
from stages.decode.engines.inflight.pool import SlotPool, pays_for_rows
from stages.decode.engines.inflight.pool_shape import GPU_STEP_ROWS, PoolShape
from stages.decode.engines.inflight.prefill import prefill_row
from stages.models.halves.features import encode
from tests.support.tiny_families import FAMILIES
from tests.support.tiny_families.in_slots import greedy, rows_of_variant
from tests.support.waves import (
    OTHER,
    THIRD,
    Wave,
    captions_of,
    in_slots,
    mixed_wave,
    noted,
)

COMPILER = shutil.which(os.environ.get("CXX", "g++"))
compiling = pytest.mark.skipif(COMPILER is None, reason="there is no compiler of C++")


@pytest.mark.parametrize(("skips", "note"), [(0, "recorded"), (3, "skipped 3 times")])
def test_recorded_and_skipped_graphs_are_noted(
    skips: int, note: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(counters["inductor"], "cudagraph_skips", skips)
    assert graph_note("cuda:0") == {"cuda_graphs": note} and graph_note("cpu") == {}


@compiling
@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_captions_of_compiled_steps_hang_on_their_own_row(dtype: str, tmp_path: Path) -> None:
    wave = mixed_wave(tmp_path, dtype=dtype)
    message = in_slots(wave, engine="inflight-compiled")
    whole = wave.captions(OTHER)
    assert {one["engine"] for one in whole} == {"inflight-compiled"}
    assert noted(message)["engine"] == "inflight-compiled"
    if dtype == "float32":
        assert captions_of(whole) == captions_of(wave.captions())
    wave.batches = [[wave.batches[0][8]]]
    in_slots(wave, THIRD, engine="inflight-compiled")
    assert wave.captions(THIRD) == [whole[8]]


@compiling
@pytest.mark.slow
@pytest.mark.parametrize("variant", ["qwen2_5_vl", "gemma3"])
def test_a_shape_is_compiled_once_however_many_pools_have_it(variant: str) -> None:
    torch.compiler.reset()
    counters["stats"].clear()
    model, items = rows_of_variant(variant)
    reference, step = reference_of(model, *items[0]), CompiledStep("cpu")
    row, other = (prefill_row(model, *items[at], max_new_tokens=8) for at in (0, 3))
    row, other = (replace(each, step=step.of(each.model)) for each in (row, other))
    shapes = [PoolShape(rows=8, slots=8, columns=columns) for columns in (64, 64, 128, 64)]
    alone = _teacher_force(row, reference, SlotPool(row, shapes[0]), 0)
    for shape in shapes:
        assert _same(alone, _teacher_force(row, reference, SlotPool(row, shape), 3, other))
    pool = SlotPool(row, shapes[0])
    pool.put(1, row, torch.full_like(row.ids[:1, :1], reference.tokens[0]))
    seen = [row.logits[0]]
    for columns, token in zip((128, 64, 128, 64), reference.tokens[1:], strict=True):
        pool.resize(columns)
        seen.append(pool.step()[1].clone())
        pool.set_tokens(torch.full((8,), token))
    assert _same(alone, seen)
    assert counters["stats"]["unique_graphs"] == 2


@pytest.mark.slow
@pytest.mark.logs_errors  # torch's, of the compiler
@pytest.mark.filterwarnings("ignore:dynamo_pgo force disabled")
def test_who_has_no_compiler_is_told(tmp_path: Path) -> None:
    import torch._inductor.config

    torch.compiler.reset()
    missing = {"cpp.cxx": (str(tmp_path / "none"),), "force_disable_caches": True}
    wave = mixed_wave(tmp_path)
    with (
        torch._inductor.config.patch(missing),
        pytest.raises(UsageError, match=r"cannot compile.*No working C\+\+ compiler") as caught,
    ):
        in_slots(wave, engine="inflight-compiled")
    assert "--engine" in caught.value.hint
    assert "\n" not in caught.value.message
    torch.compiler.reset()


def test_a_half_that_was_loaded_again_is_compiled_again() -> None:
    step = CompiledStep("cpu")
    first, second = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    step.of(first)
    before = step._step
    step.of(first)
    assert step._step is before
    step.of(second)
    assert step._step is not before


@pytest.mark.parametrize(
    ("cause", "kind", "says"),
    [
        (MemoryError("CUDA out of memory. Tried to allocate 2 GiB"), MemoryError, "out of memory"),
        (OSError(28, "No space left on device", "/cache/a.so"), UsageError, "No space left"),
        (TorchDynamoException("graph break\nand more"), UsageError, "cannot compile"),
        (ValueError("of the model"), ValueError, "of the model"),
    ],
)
def test_what_goes_wrong_at_a_step_is_told_as_what_it_is(
    cause: Exception, kind: type[Exception], says: str
) -> None:
    step = CompiledStep("cpu")
    called = step.of(torch.nn.Linear(2, 2))

    def raising(**_: Any) -> Any:
        raise cause

    step._step = raising
    with pytest.raises(kind, match=says) as caught:
        called()
    if isinstance(caught.value, UsageError):
        assert "--engine inflight" in caught.value.hint
        assert ("TORCHINDUCTOR_CACHE_DIR" in caught.value.hint) == isinstance(cause, OSError)
        assert "\n" not in caught.value.message


ROWS = "ff" * 32
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


def tried(wave: Wave, namespace: str = OTHER, **more: Any) -> dict[str, Any]:
    return noted(in_slots(wave, namespace, rows_namespace=ROWS, **{"engine": "auto", **more}))


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("height", "rows"),
    [(64, 64), (20, 16), pytest.param(40, 32, marks=SLOW), pytest.param(8, 8, marks=SLOW)],
)
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
    monkeypatch.undo()
    found = tried(wave, THIRD, slots=2)
    assert (found["rows"], found["slots"]) == (rows, 2)
    texts = [[each["caption"] for each in wave.captions(name)] for name in (OTHER, THIRD)]
    assert texts[0] == texts[1]


def test_a_number_that_no_longer_passes_is_replaced_by_a_smaller_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wave = mixed_wave(tmp_path, dtype="bfloat16")
    assert tried(wave, slots=64)["rows"] == 64
    monkeypatch.setattr(F, "linear", tiled(40))
    found = tried(wave, THIRD, slots=64)
    assert found["rows"] == 32 and "64 rows" in found["rows_reason"]
    assert StoredStepRows(wave.store, ROWS).candidates() == (32, 16, 8)


def test_stored_captions_are_accepted_whatever_their_number_of_rows(tmp_path: Path) -> None:
    wave = mixed_wave(tmp_path, dtype="bfloat16")
    tried(wave, slots=8)
    records = wave.record_set("captions", OTHER)
    records.remove(["caption-3"])
    StoredStepRows(wave.store, ROWS).keep(min(GPU_STEP_ROWS))
    tried(wave, slots=8)
    assert [each["rows"] for each in wave.captions(OTHER)] == [64] * 3 + [8] + [64] * 6


@pytest.mark.parametrize("left", [1, pytest.param(10, marks=SLOW)])
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
