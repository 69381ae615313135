"""Runs of real stages under an enforced budget: memory runs out and the run goes on. The budget
also sets the number of slots, and captions stay the same."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import flows.running.stage_runner
from artifacts.errors import CannotFit
from flows.console.display import Display
from flows.machine.launch import DirectLauncher
from flows.options.commands import CaptionConfig
from flows.planning.plan import plan_of
from flows.results.run_result import RunResult
from flows.running.run import caption
from penstock_demo.clips import write_clips
from tests.support.dying import DYING
from tests.support.pipeline import Place
from tests.support.starving import STARVED, VARIABLE
from tests.support.wide_model import SAYS, write_remembering_model, write_wide_model

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
def place(few: Path, model: Path, tmp_path: Path) -> Place:
    return Place(clips=few, out=tmp_path / "out", store=tmp_path / "store", model=str(model))


@pytest.fixture
def unplanned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Estimates that see nothing coming."""
    monkeypatch.setattr(flows.running.stage_runner, "plan_start", lambda *_: {})


def config_of(place: Place, **options: Any) -> CaptionConfig:
    """Captions by batches, which are what takes memory."""
    return place.config(**{"max_new_tokens": SAYS, "engine": "transformers", **options})


def run(
    place: Place,
    starve: dict[str, Any] | None = None,
    entries: Mapping[str, str] = STARVED,
    **options: Any,
) -> tuple[RunResult, dict[str, Any]]:
    """The outcome, and the record."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, json.dumps(starve or {}))
        config = config_of(place, **options)
        result = caption(config, Display(quiet=True), lambda to: DirectLauncher(to, entries))
    return result, json.loads((place.out / "run.json").read_text(encoding="utf-8"))


def rungs(record: dict[str, Any], stage: str) -> list[tuple[str, int]]:
    return [(r["reason"], r["rung"]["batch"]) for r in record["rungs"] if r["stage"] == stage]


def stage_of(record: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(stage for stage in record["stages"] if stage["name"] == name)
    return found


def processes(record: dict[str, Any]) -> dict[str, int]:
    return {stage["name"]: stage["processes"] for stage in record["stages"]}


def held_bytes(stage: dict[str, Any]) -> int:
    """What a stage takes above what its imports do."""
    return int(stage["peak_host_bytes"] - stage["notes"]["loaded_bytes"])


def test_a_child_that_is_killed_at_its_peak_starts_again_a_rung_lower(
    place: Place, unplanned: None
) -> None:
    starve = {"encode": {"room": 1}, "decode": {"room": 4}}
    result, record = run(place, starve, memory=700 * MIB)
    assert result.captions == 9
    assert rungs(record, "encode")[-1] == ("killed", 1)
    assert rungs(record, "decode") == [("killed", 4)]
    result, again = run(place, starve, memory=700 * MIB, prompt="What is moving?")
    assert rungs(again, "decode") == [("remembered", 4)]
    assert processes(again)["decode"] == 1


def test_what_does_not_fit_is_captioned_under_auto(place: Place) -> None:
    with pytest.raises(CannotFit) as refused:
        run(place, memory=160 * MIB)
    assert refused.value.exit_code == 3
    assert "--memory" in refused.value.hint or "--language-precision" in refused.value.hint
    result, record = run(place, memory=160 * MIB, precision="auto")
    assert (result.captions, result.failures) == (9, [])
    texts = {line["precision"]["language"] for line in place.captions()}
    assert texts <= {"int8", "nf4"} and texts
    assert {r["rung"]["precision"] for r in record["rungs"] if r["stage"] == "decode"} >= texts
    lines = place.captions()
    _, again = run(place, memory=160 * MIB, precision="auto")
    assert processes(again) == {"frames": 0, "encode": 0, "decode": 0}
    assert place.captions() == lines


def test_a_budget_decides_slots_and_not_what_is_said(place: Place, tmp_path: Path) -> None:
    place = replace(place, model=str(write_remembering_model(tmp_path / "model")))
    # In one thread: in several, products of 32 bit may depend on their rows.
    requests: dict[str, Any] = {"engine": "inflight", "max_new_tokens": 24}
    assert run(place, entries=DYING, **requests)[0].captions == 9
    whole = place.stored("captions")
    shutil.rmtree(place.store / "captions")
    plan = plan_of(config_of(place, **requests), DirectLauncher(lambda *_: None))
    assert plan.stage_plans["decode"].chosen.rung.name == "8 slots, fp32"
    for slots in (8, 2, 1):
        found = next(r for r in plan.request.rungs["decode"] if r.batch == slots)
        budget = plan.request.estimate(found).peak_bytes
        there = replace(place, out=tmp_path / f"{slots}", store=tmp_path / f"s{slots}")
        shutil.copytree(place.store, there.store)
        result, record = run(there, entries=DYING, memory=budget, **requests)
        assert (result.captions, result.failures) == (9, [])
        assert there.stored("captions") == whole
        decode = stage_of(record, "decode")
        assert decode["notes"]["slots"] == slots
        share = held_bytes(decode) / budget
        assert 0.7 <= share <= 1, f"{slots} slots: {share:.2f} of the plan"
        reasons = [reason for reason, _ in rungs(record, "decode")]
        assert reasons == ["planned"] * (slots < 8)
