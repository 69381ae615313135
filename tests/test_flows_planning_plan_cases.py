"""`penstock plan` of models that nothing here can run, by hand arithmetic on what is published."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from artifacts.errors import UsageError
from flows.cli.main import main
from flows.machine.launch import StageCall
from flows.options.commands import CaptionConfig
from flows.planning.plan import plan_of
from stages.decode.engines.inflight.pool_shape import columns_for
from tests.support.plan_cases import make_folder, plan_case

GIB = 1 << 30
LAYER = 234_917_888
"""Numbers of a layer of EVA-CLIP-8B's tower."""


class Refusing:
    """Stands for a describing process that finds no class for a model."""

    def start(self, call: StageCall) -> Any:
        raise UsageError("there is no class for it")


@pytest.mark.slow
def test_llava_7b_takes_what_is_published(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_folder(plan_case("llava-1.5-7b-hf"), tmp_path / "model")
    options = ["--frames", "1", "--precision", "bf16", "--memory", "64GiB", "--json"]
    assert main(["plan", "--model", str(folder), *options]) == 0
    found = json.loads(capsys.readouterr().out)
    stages = {stage["stage"]: stage for stage in found["memory"]["stages"]}
    encode, decode = stages["encode"], stages["decode"]
    assert encode["weight_bytes"] == 2 * 324_487_168
    assert decode["weight_bytes"] == 2 * 6_738_939_904
    # Keys and values of 32 layers of 4,096 numbers.
    tokens = decode["load"]["tokens"] + 256
    assert decode["kv_bytes"] == 8 * columns_for(tokens) * 2 * 32 * 4096 * 2
    # 24 layers hold 576 + 1 tokens of 1,024: at the least the MLP's 4,096 and the stream.
    assert encode["activation_bytes"] > 8 * 577 * (4096 + 1024) * 2
    assert decode["peak_bytes"] < 17 * GIB and not encode["by_dimensions"]
    table = found["what_fits_gpu"]
    fits = {row: {size for size, held in cells.items() if held} for row, cells in table.items()}
    # A GPU gets up to 64 slots: here as many as fit beside 12.6 GiB of weights.
    assert table["native"]["24GiB"] == {"encode": 8, "decode": 16}
    assert fits["native"] == {"16GiB", "24GiB"}  # 12.6 GiB of weights, and a context
    assert fits["int8"] == {"8GiB", "12GiB", "16GiB", "24GiB"}  # 6.5
    assert fits["nf4"] == {"6GiB", "8GiB", "12GiB", "16GiB", "24GiB"}  # 3.6
    assert "4GiB" in fits["auto"]  # layer by layer
    assert '.safetensors"' not in (tmp_path / "store" / "digests.jsonl").read_text()


def test_a_tower_without_a_class_is_planned_with_its_reason(tmp_path: Path) -> None:
    case = plan_case("eva-clip-8b")
    unknown = {**case.config, "architectures": ["SomebodysModel"]}
    folder = make_folder(replace(case, config=unknown), tmp_path / "model")
    config = CaptionConfig(sources=(), model=str(folder), frames=1, precision="bf16")
    plan = plan_of(replace(config, memory=15 * GIB), Refusing())
    assert plan.refusal is None and list(plan.choices) == ["frames", "embed"]
    found = plan.choices["embed"].chosen
    assert found.weight_bytes == 2 * 7_527_728_385 and found.by_dimensions
    assert found.peak_bytes < 15 * GIB
    assert "planned from dimensions" in plan.notes[0]
    assert "without fused attention: embed" in plan.notes[1]
    plan = plan_of(replace(config, memory=3 * GIB), Refusing())
    found = plan.choices["embed"].chosen
    assert plan.refusal is None and found.rung.block and found.rung.precision == "bf16"
    # Two of 32 layers, and what is outside of them.
    assert found.weight_bytes == 2 * (7_527_728_385 - 30 * LAYER)
    assert found.peak_bytes < 3 * GIB


def test_what_tells_too_little_keeps_its_own_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(UsageError, match="there is no class for it"):
        plan_of(CaptionConfig(sources=(), model=str(tmp_path)), Refusing())
