"""Runs of real stages under an enforced budget, which sets the number of slots; captions stay the
same."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flows.core.console.display import Display
from flows.core.machine.launch import DirectLauncher
from flows.core.plan.plan import plan_of
from flows.execution.run import caption
from flows.outputs.run_result import RunResult
from penstock_demo.clips import write_clips
from tests.support.dying import DYING
from tests.support.pipeline import Place
from tests.support.wide_model import write_remembering_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CLIPS = 9


@pytest.fixture
def place(tmp_path: Path) -> Place:
    model = write_remembering_model(tmp_path / "model")
    write_clips(tmp_path / "clips", CLIPS, seed=11)
    return Place(
        clips=tmp_path / "clips", out=tmp_path / "out", store=tmp_path / "store", model=str(model)
    )


def run(place: Place, **options: Any) -> tuple[RunResult, dict[str, Any]]:
    """The outcome, and the record."""
    config = place.config(**options)
    result = caption(config, Display(quiet=True), lambda to: DirectLauncher(to, DYING))
    return result, json.loads((place.out / "run.json").read_text(encoding="utf-8"))


def stage_of(record: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(stage for stage in record["stages"] if stage["name"] == name)
    return found


def held_bytes(stage: dict[str, Any]) -> int:
    """What a stage takes above what its imports do."""
    return int(stage["peak_host_bytes"] - stage["notes"]["loaded_bytes"])


def test_a_budget_decides_slots_and_not_what_is_said(place: Place, tmp_path: Path) -> None:
    # In one thread: in several, products of 32 bit may depend on their rows.
    requests: dict[str, Any] = {"engine": "inflight", "max_new_tokens": 24}
    assert run(place, **requests)[0].captions == CLIPS
    whole = place.stored("captions")
    shutil.rmtree(place.store / "captions")
    plan = plan_of(place.config(**requests), DirectLauncher(lambda *_: None))
    assert plan.stage_plans["decode"].chosen.rung.name == "8 slots, fp32"
    for slots in (8, 2, 1):
        found = next(r for r in plan.request.rungs["decode"] if r.batch == slots)
        budget = plan.request.estimate(found).peak_bytes
        there = replace(place, out=tmp_path / f"{slots}", store=tmp_path / f"s{slots}")
        shutil.copytree(place.store, there.store)
        result, record = run(there, memory=budget, **requests)
        assert (result.captions, result.failures) == (CLIPS, [])
        assert there.stored("captions") == whole
        decode = stage_of(record, "decode")
        assert decode["notes"]["slots"] == slots
        share = held_bytes(decode) / budget
        assert 0.7 <= share <= 1, f"{slots} slots: {share:.2f} of the plan"
        reasons = [each["reason"] for each in record["rungs"] if each["stage"] == "decode"]
        assert reasons == ["planned"] * (slots < 8)
