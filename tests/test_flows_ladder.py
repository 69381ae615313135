"""A run whose stages run out of memory goes on a rung lower, and the next one starts there; seen
with stages that answer at once."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flows.config import CaptionConfig
from flows.display import Display
from flows.memory.rungs import Rung, decode_rungs, encode_rungs
from flows.run import caption
from tests.pipeline import read_lines
from tests.tight import Room, Tight

PICTURES = 2
LONG = "Describe. " * 600
"""More tokens than are read at a time on any rung."""


def picture(folder: Path, number: int) -> None:
    Image.new("RGB", (16, 16), (number, 0, 0)).save(folder / f"{number:02d}.png")


@pytest.fixture
def config(tmp_path: Path) -> CaptionConfig:
    """Pictures, and a model of three files."""
    (tmp_path / "pictures").mkdir()
    for number in range(PICTURES):
        picture(tmp_path / "pictures", number)
    (tmp_path / "model").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "model" / name).write_text("{}")
    return CaptionConfig(
        sources=(str(tmp_path / "pictures"),),
        model=str(tmp_path / "model"),
        out=str(tmp_path / "out"),
        store=str(tmp_path / "store"),
        batch_size=PICTURES,
        prompt=LONG,
        precision="auto",
        memory=4 << 30,
    )


def run(config: CaptionConfig, stages: Tight) -> list[dict[str, Any]]:
    """The lines that were written."""
    caption(config, Display(quiet=True), stages.launcher)
    return read_lines(Path(config.out) / "captions.jsonl")


def record(config: CaptionConfig) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(config.out) / "run.json").read_text())
    return found


def reasons(config: CaptionConfig) -> list[tuple[str, str]]:
    return [(taken["stage"], taken["reason"]) for taken in record(config)["rungs"]]


def rung_of(stage: str, told: Mapping[str, Any]) -> Rung:
    """The rung that a stage is on, by what it is told."""
    return Rung(
        stage=stage,
        batch=max(map(len, told["batches"])),
        prefill=told["prefill"],
        kv=told["kv"],
        precision=told["precision"],
        offload=told["offload"],
    )


ONLY: list[tuple[str, str]] = [("fp32", ""), ("int8", ""), ("nf4", "")]
LADDERS = {
    "encode": encode_rungs(PICTURES, [name for name, _ in ONLY], offload=True),
    "decode": decode_rungs(PICTURES, ONLY, on_gpu=False, offload=True),
}


def only(stage: str, good: list[Rung]) -> Room:
    """Room on these rungs alone."""

    def room(told: Mapping[str, Any]) -> int:
        here = rung_of(stage, told)
        alike = [rung.batch for rung in good if replace(rung, batch=here.batch) == here]
        return max(alike, default=0)

    return room


@pytest.mark.parametrize("dies", ["raise", "kill", "shrink"])
@pytest.mark.parametrize("stage", ["encode", "decode"])
def test_whatever_the_rung_that_fits_the_run_ends_on_it_and_the_next_starts_there(
    config: CaptionConfig, tmp_path: Path, stage: str, dies: str
) -> None:
    half = "vision" if stage == "encode" else "language"
    for number, fitting in enumerate(LADDERS[stage]):
        rooms = {stage: only(stage, LADDERS[stage][number:])}
        here = replace(config, store=str(tmp_path / f"store-{number}"))
        lines = run(here, Tight(dies, rooms))
        assert {line["precision"][half] for line in lines} == {fitting.precision}
        taken = record(here)["rungs"]
        assert len(lines) == PICTURES and bool(taken) == bool(number)
        if taken:
            assert {entry["stage"] for entry in taken} == {stage}
            assert (taken[-1]["rung"], taken[-1]["name"]) == (fitting.to_json(), fitting.name)
            assert all(entry["reason"] in ("out of memory", "killed") for entry in taken)
            assert all("memory" in entry["error"] for entry in taken)
        picture(tmp_path / "pictures", 10 + number)
        again = Tight(dies, rooms)
        assert len(run(replace(here, prompt=LONG + "Again."), again)) == PICTURES + 1
        assert again.deaths == 0
        expected = [("remembered", fitting.to_json())] if number else []
        assert [(e["reason"], e["rung"]) for e in record(here)["rungs"]] == expected
        (tmp_path / "pictures" / f"{10 + number}.png").unlink()
