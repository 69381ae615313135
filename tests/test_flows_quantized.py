"""Checkpoints that other programs quantized: captions, plans and refusals of whole commands."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.checkpoints import whole_checkpoint
from tests.support.families import checkpoint
from tests.support.inside import run_inside
from tests.support.media import write_numbered, write_video
from tests.support.pipeline import Place
from tests.support.quantized import LAYOUTS, name_of_today, twin_of, write_quantized

slow = pytest.mark.slow
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
QUICK = ("awq", "fp8-block", "w4a16-unsorted")


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


def record(place: Place, folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((place.out / folder.name / "run.json").read_text())
    return found


@pytest.mark.parametrize(
    "layout", [n if n in QUICK else pytest.param(n, marks=slow) for n in (*LAYOUTS, "mixed")]
)
@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=slow)])
def test_captions_of_a_quantized_checkpoint_are_those_of_its_twin(
    layout: str, precision: str, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_bf16 = precision == "bf16"
    monkeypatch.setattr("flows.checkpoint.precision.cpu_has_bfloat16", lambda: has_bf16)
    folder = write_quantized(checkpoint("qwen2_5_vl"), tmp_path / layout, layout)
    found = captions(place, folder)
    assert found == captions(place, twin_of(folder))
    assert len(found) == 3 and len({caption for _, caption, _ in found}) > 1
    label = LAYOUTS[layout].label if layout in LAYOUTS else "mixed"
    own = replace(place, out=place.out / folder.name)
    assert {row["precision"]["language"] for row in own.captions()} == {label}
    notes = record(place, folder)["stages"][-1]["notes"]
    assert notes["stored_weights"] == f"{label}, dequantized when loaded"


@pytest.mark.parametrize(
    ("family", "layout", "nested"),
    [
        ("qwen3_vl", "w4a16", False),
        ("gemma3", "gptq", False),
        ("internvl", "awq", True),
        pytest.param("qwen3_vl", "fp8-block", False, marks=slow),
        pytest.param("gemma3", "w8a8", False, marks=slow),
    ],
)
def test_every_architecture_runs_quantized(
    family: str, layout: str, nested: bool, place: Place, tmp_path: Path
) -> None:
    source = checkpoint(family) if family == "qwen3_vl" else whole_checkpoint(family)
    folder = write_quantized(source, tmp_path / layout, layout, nested=nested)
    assert captions(place, folder) == captions(place, twin_of(folder))


def test_names_of_transformers_5_are_found_whatever_the_list_says(
    place: Place, tmp_path: Path
) -> None:
    source = checkpoint("qwen2_5_vl")
    folder = write_quantized(source, tmp_path / "model", "awq", rename=name_of_today)
    before = write_quantized(source, tmp_path / "before", "awq")
    assert captions(place, folder) == captions(place, before)
