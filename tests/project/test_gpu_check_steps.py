"""Rows of the check of a GPU about recorded steps, and the model and clip that it measures."""

import json
from pathlib import Path
from typing import Any

import pytest

from scripts.prove.gpu_check import steps
from scripts.prove.gpu_check.halves import Bench
from scripts.prove.gpu_check.rows import DEMO, Row, Setting
from tests.support.builders.models import Shape, build
from tests.support.fake_gpu.graphs import DRIVER, PREVIOUS
from tests.support.fake_gpu.state import GraphFaults
from tests.support.recorded_steps import cuda_graphs, two_sequences

WORK = steps.Work(wall_ms=2.0, calls=10.0, card_ms=1.0, kernels=10.0)
DEEP = Shape(layers=1, width=64, tower_layers=32, tower_width=64, vocabulary=512)
FLAT = Shape(layers=1, width=64, tower_layers=11, tower_width=64, vocabulary=512)


def recorded_row(
    variant: str, folder: Path, patch: pytest.MonkeyPatch, faults: GraphFaults
) -> tuple[Row, list[str]]:
    """The row of a step of a tiny model, and the modes in which it was recorded."""
    patch.setattr(steps, "work_of", lambda call: (call(), WORK)[1])
    patch.setattr(steps, "_held", lambda setting: {"reserved_bytes": 0, "device_bytes": 0})
    read, _ = two_sequences(variant)
    with cuda_graphs(faults) as happened:
        (found,) = steps.recorded_steps(Setting(folder=folder), read, "bf16", (8,))
    return found, happened.modes


@pytest.mark.slow
@pytest.mark.parametrize("variant", ("qwen2_5_vl", "qwen3_5", "lfm2_vl"))
def test_recorded_steps_have_the_bits_of_plain_ones_also_with_states(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, modes = recorded_row(variant, tmp_path, monkeypatch, GraphFaults())
    assert (found.figures["apart"], found.verdict) == (0.0, "ok"), found.found
    assert modes == ["thread_local"]
    assert found.figures["replayed"] == steps.STEPS_COMPARED - 2 + 1  # one is timed
    assert {"recording_seconds", "reserved_bytes", "device_bytes"} <= found.figures.keys()


@pytest.mark.parametrize(
    ("faults", "words"),
    [(GraphFaults(failing=(1,)), DRIVER), (GraphFaults(other=(1,)), "other logits")],
    ids=["fails", "bits"],
)
def test_a_step_that_is_not_recorded_differs_and_the_row_has_the_cause(
    faults: GraphFaults, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, _ = recorded_row("qwen2_5_vl", tmp_path, monkeypatch, faults)
    assert found.verdict == "differs"
    assert words in found.found and PREVIOUS not in found.found


def test_replayed_steps_with_other_bits_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the product has not seen it."""
    real = steps.stepped

    def other(read: Any, pool: Any, tokens: Any = ()) -> Any:
        logits, given, work = real(read, pool, tokens)
        return logits + (0.5 if tokens else 0), given, work

    monkeypatch.setattr(steps, "stepped", other)
    found, _ = recorded_row("qwen2_5_vl", tmp_path, monkeypatch, GraphFaults())
    assert (found.verdict, found.figures["apart"]) == ("differs", 0.5)


@pytest.mark.parametrize(("shape", "full"), [(DEEP, [7, 15, 23, 31]), (FLAT, [7, 10])])
def test_the_random_model_has_windows_but_in_every_eighth_layer_and_the_last(
    shape: Shape, full: list[int], tmp_path: Path
) -> None:
    config = json.loads((build(tmp_path / "model", shape, 8) / "config.json").read_text())
    tower = config["vision_config"]
    assert tower["fullatt_block_indexes"] == full
    assert tower["window_size"] == 8 * tower["patch_size"]


def test_the_large_clip_has_28_by_36_patches_a_frame() -> None:
    prepared = Bench(DEMO, "cpu", large=True).prepared
    assert prepared.inputs["video_grid_thw"].tolist() == [[4, 28, 36]]
