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
from tests.support.pipeline import Place, place_below
from tests.support.wide_model import write_remembering_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CLIPS = 9


@pytest.fixture
def place(tmp_path: Path) -> Place:
    model = write_remembering_model(tmp_path / "model")
    write_clips(tmp_path / "clips", CLIPS, seed=11)
    return place_below(tmp_path, model=model)


def run(place: Place, **options: Any) -> tuple[RunResult, dict[str, Any]]:
    """The outcome, and the record."""
    config = place.config(**options)
    result = caption(config, Display(quiet=True), lambda to: DirectLauncher(to, DYING))
    return result, json.loads((place.out / "run.json").read_text(encoding="utf-8"))


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
        decode = there.stages()["decode"]
        assert decode["notes"]["slots"] == slots
        # Above what its imports take.
        share = (decode["peak_host_bytes"] - decode["notes"]["loaded_bytes"]) / budget
        assert 0.7 <= share <= 1, f"{slots} slots: {share:.2f} of the plan"
        reasons = [each["reason"] for each in record["rungs"] if each["stage"] == "decode"]
        assert reasons == ["planned"] * (slots < 8)
