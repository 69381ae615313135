"""Runs of real stages under a budget that is really kept: memory runs out, and the run goes on."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import flows.running.steps
from artifacts.errors import CannotFit
from benchmarks._models import Shape, build
from flows.console.display import Display
from flows.job.config import CaptionConfig
from flows.job.launch import DirectLauncher
from flows.results.run_result import RunResult
from flows.running.run import caption
from penstock_demo.clips import write_clips
from tests.support.pipeline import Place
from tests.support.starving import STARVED, VARIABLE
from tests.support.wide_model import SAYS, write_wide_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

MIB = 1 << 20
CLIPS = 50


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wide_model(tmp_path_factory.mktemp("wide") / "model", text=16384, vision=8192)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many") / "clips"
    write_clips(folder, CLIPS, seed=11)
    return folder


@pytest.fixture
def few(clips: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "few"
    folder.mkdir()
    for clip in sorted(clips.glob("*.mp4"))[:9]:
        shutil.copy(clip, folder)
    return folder


@pytest.fixture
def unplanned(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Estimates that see nothing coming."""
    monkeypatch.setattr(flows.running.steps, "plan_start", lambda *_: {})
    yield


def run(
    place: Place, starve: dict[str, Any] | None = None, **options: Any
) -> tuple[RunResult, dict[str, Any]]:
    """The outcome, and the record."""
    config = CaptionConfig(
        sources=(str(place.clips),),
        model=place.model,
        out=str(place.out),
        store=str(place.store),
        max_new_tokens=SAYS,
        engine="transformers",  # whose batches are what takes memory
        **options,
    )
    os.environ[VARIABLE] = json.dumps(starve or {})
    try:
        result = caption(config, Display(quiet=True), lambda to: DirectLauncher(to, STARVED))
    finally:
        del os.environ[VARIABLE]
    return result, json.loads((place.out / "run.json").read_text(encoding="utf-8"))


def rungs(record: dict[str, Any], stage: str) -> list[tuple[str, int]]:
    return [(r["reason"], r["rung"]["batch"]) for r in record["rungs"] if r["stage"] == stage]


def processes(record: dict[str, Any]) -> dict[str, int]:
    return {stage["name"]: stage["processes"] for stage in record["stages"]}


def test_many_clips_under_a_budget_that_the_batch_exceeds(
    clips: Path, model: Path, tmp_path: Path, unplanned: None
) -> None:
    place = Place(clips=clips, out=tmp_path / "out", store=tmp_path / "store", model=str(model))
    budget = 250 * MIB
    result, record = run(place, memory=budget)
    assert (result.captions, result.failures) == (CLIPS, [])
    for stage in ("encode", "decode"):
        taken = rungs(record, stage)
        assert taken and taken[-1][1] < 8, stage
        assert {reason for reason, _ in taken} == {"out of memory"}
        entry = next(s for s in record["stages"] if s["name"] == stage)
        assert entry["peak_host_bytes"] - entry["notes"]["loaded_bytes"] <= budget
    # In halves, in the same process.
    assert processes(record) == {"frames": 1, "encode": 1, "decode": 1}
    result, again = run(place, memory=budget, prompt="What is moving?")
    assert result.captions == CLIPS
    assert rungs(again, "decode") == [("remembered", rungs(record, "decode")[-1][1])]
    assert processes(again) == {"frames": 0, "encode": 0, "decode": 1}


def test_a_plan_sees_it_coming(few: Path, model: Path, tmp_path: Path) -> None:
    place = Place(clips=few, out=tmp_path / "out", store=tmp_path / "store", model=str(model))
    result, record = run(place, memory=330 * MIB)
    assert result.captions == 9
    reasons = [reason for reason, _ in rungs(record, "decode")]
    assert reasons[0] == "planned" and set(reasons) <= {"planned", "out of memory"}
    planned = {stage["stage"]: stage for stage in record["plan"]["memory"]["stages"]}
    assert planned["decode"]["rung"]["batch"] == rungs(record, "decode")[0][1] < 8


def test_a_child_that_is_killed_at_its_peak_starts_again_a_rung_lower(
    few: Path, model: Path, tmp_path: Path, unplanned: None
) -> None:
    place = Place(clips=few, out=tmp_path / "out", store=tmp_path / "store", model=str(model))
    starve = {"encode": {"room": 1, "dies": "peak"}, "decode": {"room": 4, "dies": "peak"}}
    result, record = run(place, starve, memory=700 * MIB)
    assert result.captions == 9
    assert rungs(record, "encode")[-1] == ("killed", 1)
    assert rungs(record, "decode") == [("killed", 4)]
    result, again = run(place, starve, memory=700 * MIB, prompt="What is moving?")
    assert rungs(again, "decode") == [("remembered", 4)]
    assert processes(again)["decode"] == 1


def test_a_kill_that_is_not_of_memory_keeps_the_rung_and_the_bytes(
    few: Path, tmp_path: Path
) -> None:
    whole = Place(clips=few, out=tmp_path / "out-1", store=tmp_path / "store-1")
    run(whole)
    killed = Place(clips=few, out=tmp_path / "out-2", store=tmp_path / "store-2")
    starve = {}
    for stage in ("encode", "decode"):
        once = tmp_path / f"once-{stage}"
        once.touch()
        starve[stage] = {"room": 0, "dies": "kill", "once": str(once)}
    result, record = run(killed, starve)
    assert (result.captions, record["rungs"]) == (9, [])
    assert processes(record) == {"frames": 1, "encode": 2, "decode": 2}
    for kind in ("features", "captions"):
        assert killed.stored(kind) == whole.stored(kind)


def test_what_does_not_fit_ends_natively_and_is_captioned_under_auto(
    few: Path, model: Path, tmp_path: Path
) -> None:
    place = Place(clips=few, out=tmp_path / "out", store=tmp_path / "store", model=str(model))
    with pytest.raises(CannotFit) as refused:
        run(place, memory=160 * MIB)
    assert refused.value.exit_code == 3
    assert "--memory" in refused.value.hint or "--language-precision" in refused.value.hint
    result, record = run(place, memory=160 * MIB, precision="auto")
    assert (result.captions, result.failures) == (9, [])
    said = {line["precision"]["language"] for line in place.captions()}
    assert said <= {"int8", "nf4"} and said
    assert {r["rung"]["precision"] for r in record["rungs"] if r["stage"] == "decode"} >= said
    lines = place.captions()
    _, again = run(place, memory=160 * MIB, precision="auto")
    assert processes(again) == {"frames": 0, "encode": 0, "decode": 0}
    assert place.captions() == lines


@pytest.mark.parametrize("planned", [True, False])
def test_a_tower_that_does_not_fit_is_streamed_and_sees_the_same(
    few: Path, tmp_path: Path, planned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without leave for anything that changes words; the plan foresees it, or a process dies."""
    shape = Shape(layers=1, width=128, tower_layers=16, tower_width=640, vocabulary=512)
    model = str(build(tmp_path / "model", shape, SAYS))
    roomy = Place(clips=few, out=tmp_path / "out-1", store=tmp_path / "store-1", model=model)
    _, whole = run(roomy, precision="fp32", batch_size=4)
    tight = Place(clips=few, out=tmp_path / "out-2", store=tmp_path / "store-2", model=model)
    if not planned:
        monkeypatch.setattr(flows.running.steps, "plan_start", lambda *_: {})
    budget = 180 * MIB
    result, record = run(tight, memory=budget, precision="fp32", batch_size=4)
    assert (result.captions, result.failures) == (9, [])
    last = [taken["rung"] for taken in record["rungs"] if taken["stage"] == "encode"][-1]
    assert last["offload"] and last["block"] and last["precision"] == "fp32"
    if last["batch"] == 4:
        assert tight.stored("features") == roomy.stored("features")
    (encode,) = (stage for stage in record["stages"] if stage["name"] == "encode")
    assert encode["peak_host_bytes"] - encode["notes"]["loaded_bytes"] <= budget
    assert encode["notes"]["bytes_fetched_a_pass"] > 1.5 * budget
    assert whole["rungs"] == []
    assert {line["precision"]["vision"] for line in tight.captions()} == {"fp32"}


def test_one_clip_that_fits_on_no_rung_fails_alone(few: Path, tmp_path: Path) -> None:
    place = Place(clips=few, out=tmp_path / "out", store=tmp_path / "store")
    run(place)
    giant = place.captions()[4]["features"]
    starve = {"decode": {"giants": [giant]}}
    result, record = run(place, starve, prompt="What is moving?")
    assert (result.captions, result.exit_code) == (8, 1)
    (failure,) = place.failures()
    assert (failure["error"], failure["media_path"]) == ("memory", "clip-05.mp4")
    assert ("item alone", 1) in rungs(record, "decode")
    result, _ = run(place, prompt="What is moving?")
    assert (result.captions, result.failures) == (9, [])
