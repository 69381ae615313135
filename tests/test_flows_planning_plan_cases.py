"""Plans of models that people have, by hand arithmetic on what is published of them."""

import json
from pathlib import Path
from typing import Any

import pytest

from flows.cli.main import main
from stages.decode.engines.inflight.shape import columns_for
from tests.support.plan_cases import make_folder, plan_case


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a store, in which each model is described once."""
    return tmp_path_factory.mktemp("cases")


def planned(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str, *options: str
) -> dict[str, Any]:
    """The plan for single frames in 16 bit."""
    model = folder / name
    if not model.exists():
        make_folder(plan_case(name), model)
    words = ["--frames", "1", "--precision", "bf16", "--memory", "64GiB", "--json"]
    code = main(["plan", "--model", str(model), "--store", str(folder / "store"), *words, *options])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (code == 0) == found["fits"]
    found["stage"] = {stage["stage"]: stage for stage in found["memory"]["stages"]}
    return found


@pytest.mark.slow
def test_llava_7b_takes_what_its_dimensions_say(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = planned(folder, capsys, "llava-1.5-7b-hf")
    encode, decode = found["stage"]["encode"], found["stage"]["decode"]
    assert encode["weight_bytes"] == 2 * 324_487_168
    assert decode["weight_bytes"] == 2 * 6_738_939_904
    # Keys and values of 32 layers of 4,096 numbers.
    tokens = decode["load"]["tokens"] + 256
    assert decode["kv_bytes"] == 8 * columns_for(tokens) * 2 * 32 * 4096 * 2
    # 24 layers hold 576 + 1 tokens of 1,024: at the least the MLP's 4,096 and the stream.
    assert encode["activation_bytes"] > 8 * 577 * (4096 + 1024) * 2
    assert found["stage"]["decode"]["peak_bytes"] < 17 << 30


@pytest.mark.slow
def test_llava_7b_in_cards_of_24_16_8_and_6_gib(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = planned(folder, capsys, "llava-1.5-7b-hf")["what_fits_gpu"]
    fits = {row: {size for size, held in cells.items() if held} for row, cells in table.items()}
    assert table["native"]["24GiB"] == {"encode": 8, "decode": 8}
    assert fits["native"] == {"16GiB", "24GiB"}  # 12.6 GiB of weights, and a context
    assert fits["int8"] == {"8GiB", "12GiB", "16GiB", "24GiB"}  # 6.5
    assert fits["nf4"] == {"6GiB", "8GiB", "12GiB", "16GiB", "24GiB"}  # 3.6
    assert "4GiB" in fits["auto"]  # layer by layer


@pytest.mark.slow
def test_qwen_7b_takes_what_its_dimensions_say(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = planned(folder, capsys, "qwen2.5-vl-7b-instruct")
    decode = found["stage"]["decode"]
    halves = found["halves"]
    both = halves["vision"]["parameters"] + halves["language"]["parameters"]
    assert both == 8_292_166_656
    tokens = decode["load"]["tokens"] + 256
    # Four heads of 128 numbers for keys, as many for values, in 28 layers.
    assert decode["kv_bytes"] == 8 * columns_for(tokens) * 2 * 28 * 4 * 128 * 2
    # 14 by 14 pixels make a patch, four patches a token.
    assert decode["load"]["tokens"] - decode["load"]["text_tokens"] == pytest.approx(
        1920 * 1080 / 28**2, rel=0.05
    )


def test_a_second_plan_starts_no_process(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    planned(folder, capsys, "llava-1.5-7b-hf")
    monkeypatch.setattr("flows.job.launch.DirectLauncher.start", None)
    assert planned(folder, capsys, "llava-1.5-7b-hf", "--explain")["fits"]
