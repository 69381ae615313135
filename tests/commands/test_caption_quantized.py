"""Checkpoints that other programs quantized: captions, plans and refusals of whole commands."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flows.core.checkpoint.precision import weight_bytes
from flows.core.machine.launch import DirectLauncher
from flows.core.plan.half import with_packed
from flows.interfaces.cli.main import main
from stages.models import describe
from tests.support import gpus
from tests.support.builders.plan_cases import plan_case
from tests.support.checkpoints import whole_checkpoint
from tests.support.families import checkpoint
from tests.support.inside import InsideLauncher, run_inside
from tests.support.media import write_numbered, write_video
from tests.support.pipeline import Place
from tests.support.quantized import LAYOUTS, name_of_today, twin_of, write_headers, write_quantized

slow = pytest.mark.slow
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Two pictures and a video."""
    clips = write_numbered(tmp_path / "clips", 2)
    write_video(clips / "video.mp4", ticks=range(60))
    return Place(clips=clips, out=tmp_path / "out", store=tmp_path / "store")


def captions(place: Place, folder: Path, **options: Any) -> list[tuple[str, ...]]:
    """Name, caption and score of each chunk."""
    own = replace(place, model=str(folder), out=place.out / folder.name)
    run_inside(own, chunk=2.0, max_new_tokens=8, **options)
    return [(row["media_path"], row["caption"], row["logprob"]) for row in own.captions()]


def record(place: Place, folder: Path) -> Any:
    return json.loads((place.out / folder.name / "run.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("layout", [*LAYOUTS, "mixed"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_captions_of_a_quantized_checkpoint_are_those_of_its_twin(
    layout: str, precision: str, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_bf16 = precision == "bf16"
    monkeypatch.setattr("flows.core.checkpoint.precision.cpu_has_bfloat16", lambda: has_bf16)
    folder = write_quantized(checkpoint("qwen2_5_vl"), tmp_path / layout, layout)
    found = captions(place, folder)
    assert found == captions(place, twin_of(folder))
    assert len(found) == 3 and len({caption for _, caption, _ in found}) > 1
    label = LAYOUTS[layout].label if layout in LAYOUTS else "mixed"
    own = replace(place, out=place.out / folder.name)
    assert {row["precision"]["language"] for row in own.captions()} == {label}
    notes = record(place, folder)["stages"][-1]["notes"]
    assert notes["stored_weights"] == f"{label}, dequantized when loaded"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "layout", "nested"),
    [
        ("qwen3_vl", "w4a16", False),
        ("gemma3", "gptq", False),
        ("internvl", "awq", True),
        ("qwen3_vl", "fp8-block", False),
        ("gemma3", "w8a8", False),
    ],
)
def test_every_architecture_runs_quantized(
    family: str, layout: str, nested: bool, place: Place, tmp_path: Path
) -> None:
    source = checkpoint(family) if family == "qwen3_vl" else whole_checkpoint(family)
    folder = write_quantized(source, tmp_path / layout, layout, nested=nested)
    assert captions(place, folder) == captions(place, twin_of(folder))


@pytest.mark.slow
def test_names_of_transformers_5_are_found_whatever_the_list_says(
    place: Place, tmp_path: Path
) -> None:
    source = checkpoint("qwen2_5_vl")
    folder = write_quantized(source, tmp_path / "model", "awq", rename=name_of_today)
    before = write_quantized(source, tmp_path / "before", "awq")
    assert captions(place, folder) == captions(place, before)


PACKED = [*(name for name, layout in LAYOUTS.items() if layout.packs), "mixed"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout", [n if n == "gptq-unsorted" else pytest.param(n, marks=slow) for n in PACKED]
)
def test_packed_layers_make_the_same_captions_under_the_same_keys(
    layout: str, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_quantized(checkpoint("qwen2_5_vl"), tmp_path / layout, layout)
    expected = captions(place, twin_of(folder))
    with monkeypatch.context() as patch:
        patch.setattr(
            "flows.core.plan.costs.decode.with_packed",
            lambda half, rungs: [rung for rung in with_packed(half, rungs) if rung.packed],
        )
        assert captions(place, folder) == expected
        notes = record(place, folder)["stages"][-1]["notes"]
        assert notes["stored_weights"].endswith(", unpacked layer by layer")
        assert sum(notes["quantized_modules"].values()) == notes["linear_modules"] - 1  # its head
        alone = replace(place, store=place.store.with_name("alone"), out=place.out / "alone")
        assert captions(alone, folder, batch_size=1, limit=1) == expected[:1]
    assert captions(place, folder, batch_size=1) == expected  # of the store: the same keys
    assert not record(place, folder)["stages"][-1]["processes"]


@pytest.mark.slow
def test_a_half_that_fits_only_packed_is_planned_so(tmp_path: Path) -> None:
    folder = write_headers(plan_case("qwen2.5-vl-7b-instruct"), tmp_path / "7b")
    profile = describe(folder)
    half = profile.language
    assert (half.stored_as, profile.vision.stored_as) == ("awq", "")
    # 28 layers of 233,046,016 numbers: 4 bits each, and a scale and a zero for 128 of them.
    count = 28 * 233_046_016
    assert (half.packed_parameters, half.packed_bytes) == (count, count // 2 + count // 128 * 3)
    assert half.largest_packed == 18_944 * 3_584
    settings: dict[str, Any] = {"precision": "awq", "dtype": "float16"}
    assert weight_bytes(half, **settings) == 2 * half.parameters
    others = half.parameters - count
    assert weight_bytes(half, **settings, packed=True) == half.packed_bytes + 2 * others


@slow
def test_a_card_of_8_gib_runs_four_slots_of_the_7b(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gpus.see(gpus.plain(), tmp_path, monkeypatch)
    folder = write_headers(plan_case("qwen2.5-vl-7b-instruct"), tmp_path / "7b")
    inside = InsideLauncher()
    monkeypatch.setattr(DirectLauncher, "start", lambda _, call: inside.start(call))
    limits = ["--memory", "7.2GiB", "--max-video-pixels", "6150000"]
    options = ["--model", str(folder), "--store", str(tmp_path / "store"), *limits]
    assert main(["plan", *options]) == 0
    out = capsys.readouterr().out
    assert "3,835 tokens a prompt" in out  # and 256 of the answer: columns of 4,096
    assert "4 slots, awq" in out and "unpacked layer by layer" in out
    assert "5.21 GiB of weights in awq (4 bit as stored, unpacked layer by layer)" in out
