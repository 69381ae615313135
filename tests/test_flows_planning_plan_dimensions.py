"""`penstock plan` of models that nothing here can run, and of files that are not to be read."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flows.cli.main import main
from flows.job import precision
from tests.support.plan_cases import make_folder, plan_case

GIB = 1 << 30
LAYER = 234_917_888
"""Numbers of a layer of EVA-CLIP-8B's tower."""


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PENSTOCK_STORE", str(tmp_path / "store"))
    return tmp_path / "store"


def planned(
    capsys: pytest.CaptureFixture[str], folder: Path, *options: str
) -> tuple[int, dict[str, Any]]:
    code = main(["plan", "--model", str(folder), "--frames", "1", "--json", *options])
    return code, json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_a_tower_without_a_class_is_planned_with_its_reason(
    tmp_path: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = plan_case("eva-clip-8b")
    unknown = {**case.config, "architectures": ["SomebodysModel"]}
    folder = make_folder(replace(case, config=unknown), tmp_path / "model")
    code, told = planned(capsys, folder, "--precision", "bf16", "--memory", "15GiB")
    assert code == 0
    stages = {stage["stage"]: stage for stage in told["memory"]["stages"]}
    assert list(stages) == ["frames", "embed"]
    assert stages["embed"]["weight_bytes"] == 2 * 7_527_728_385
    assert stages["embed"]["by_dimensions"]
    assert stages["embed"]["peak_bytes"] < 15 * GIB
    assert "planned from dimensions" in told["notes"][0]
    assert "without fused attention: embed" in told["notes"][1]
    assert set(told["what_fits"]) == {"native", "bf16", "int8", "nf4", "auto"}
    code, told = planned(capsys, folder, "--precision", "bf16", "--memory", "3GiB")
    assert code == 0, told["refusal"]
    (encode,) = (stage for stage in told["memory"]["stages"] if stage["stage"] == "embed")
    assert encode["rung"]["block"] and encode["rung"]["precision"] == "bf16"
    # Two of 32 layers, and what is outside of them.
    assert encode["weight_bytes"] == 2 * (7_527_728_385 - 30 * LAYER)
    assert encode["peak_bytes"] < 3 * GIB


@pytest.mark.slow
def test_a_captioner_of_remote_code_is_planned_in_halves(
    tmp_path: Path,
    store: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = plan_case("cogvlm2-llama3-caption")
    unknown = {**case.config, "architectures": ["SomebodysForCausalLM"]}
    case = replace(case, config=unknown, processor=None)
    folder = make_folder(case, tmp_path / "model")
    # What is not quantized stays in 16 bit; CPUs that cannot multiply those take 32.
    monkeypatch.setattr(precision, "cpu_has_bfloat16", lambda: True)
    code, told = planned(capsys, folder, "--language-precision", "nf4", "--memory", "16GiB")
    assert told["fits"] == (code == 0)
    halves = told["halves"]
    assert halves["vision"]["parameters"] == 4_477_269_248
    assert halves["language"]["parameters"] == 8_030_263_296
    assert halves["language"]["bytes"] < 6e9
    assert "--trust-remote-code" not in told["notes"][0]


@pytest.mark.slow
def test_a_plan_reads_no_weights(
    tmp_path: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """14 GB of them would take half a minute to read for their digest."""
    folder = make_folder(plan_case("llava-1.5-7b-hf"), tmp_path / "model")
    code, told = planned(capsys, folder, "--language-precision", "nf4", "--memory", "8GiB")
    assert code == 0, told["refusal"]
    assert told["halves"]["vision"]["parameters"] == 324_487_168
    assert told["halves"]["language"]["parameters"] == 6_738_939_904
    assert not told["memory"]["stages"][1]["by_dimensions"]
    assert '.safetensors"' not in (store / "digests.jsonl").read_text()


def test_what_tells_too_little_keeps_its_own_error(
    tmp_path: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    assert main(["plan", "--model", str(tmp_path)]) in (2, 5)
    assert "Traceback" not in capsys.readouterr().err
