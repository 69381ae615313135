"""Whole runs by either engine: which one speaks, whose captions answer, and what a half that is not
for slots is served by."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from penstock_demo import CLIPS
from tests.support.checkpoints import whole_checkpoint
from tests.support.inside import run_inside
from tests.support.media import picture
from tests.support.pipeline import Place

pytestmark = pytest.mark.slow
FEW = 4
"""Demo clips that are captioned."""


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(clips=CLIPS, out=tmp_path / "out", store=tmp_path / "store")


def run(place: Place, engine: str, **options: Any) -> Any:
    return run_inside(place, engine=engine, **{"limit": FEW, **options})


def save(path: Path, number: int) -> None:
    Image.fromarray(picture(number, 64, 64 + 8 * number)).save(path)


def said(place: Place) -> list[str]:
    return [row["caption"] for row in place.captions()]


def test_a_run_takes_slots_where_they_say_the_same(place: Place) -> None:
    run(place, "auto")
    notes = place.stages()["decode"]["notes"]
    assert notes["engine"] == "inflight" and notes["slots"] and "engine_reason" not in notes
    assert notes["row_steps_used"] <= notes["row_steps"]
    slots = said(place)
    elsewhere = replace(place, store=place.store / "other", out=place.out / "other")
    run(elsewhere, "transformers")
    assert said(elsewhere) == slots
    assert elsewhere.stages()["decode"]["notes"].get("engine", "transformers") == "transformers"


def test_captions_of_either_engine_answer_who_names_none(place: Place) -> None:
    assert run(place, "transformers").started[-1] == "decode"
    assert run(place, "auto").started == []
    assert run(place, "inflight").started == ["decode"]
    assert len(place.stored("captions")) == 2 * FEW
    assert run(place, "auto").started == run(place, "transformers").started == []
    assert run(place, "inflight", limit=FEW + 2).started[-1] == "decode"
    assert run(place, "auto", limit=FEW + 2).started == []
    assert run(place, "transformers", limit=FEW + 2).started == ["decode"]


def test_a_half_that_is_not_for_slots_is_served_as_before(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(6):
        save(folder / f"{number}.png", number)
    model = str(whole_checkpoint("florence2"))
    place = Place(clips=folder, out=tmp_path / "out", store=tmp_path / "store", model=model)
    before = replace(place, out=tmp_path / "before", store=tmp_path / "whole")
    options: dict[str, Any] = {"limit": None, "max_new_tokens": 6, "batch_size": 4}
    run(before, "transformers", **options)
    run(place, "auto", **{**options, "limit": 3})
    resumed = run(place, "auto", **options)
    assert resumed.started == ["frames", "encode", "decode"]
    assert "goes to an encoder" in place.stages()["decode"]["notes"]["engine_reason"]
    assert place.captions() == before.captions()
    assert run(place, "auto", **options).started == []
    assert run(place, "transformers", **options).started == []


def test_who_names_slots_is_told_that_a_half_is_not_for_them(tmp_path: Path) -> None:
    save(tmp_path / "one.png", 1)
    model = str(whole_checkpoint("florence2"))
    place = Place(clips=tmp_path / "one.png", out=tmp_path / "o", store=tmp_path / "s", model=model)
    done = place.run("--engine", "inflight")
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if "engine" in line]
    assert "--engine auto" in line and "Traceback" not in done.stderr
    wrong = place.run("--engine", "vllm")
    assert wrong.returncode == 2
    assert "--engine vllm is not known. Choose from auto, transformers, inflight" in wrong.stderr
