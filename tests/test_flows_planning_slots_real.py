"""Real runs in slots: a budget decides how many there are, and not what is said; and a run that is
killed at any step goes on to the same bytes."""

import json
import random
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from artifacts.errors import Killed
from flows.console.display import Display
from flows.job.config import CaptionConfig
from flows.job.launch import DirectLauncher
from flows.planning.plan import plan_of
from flows.results.run_result import RunResult
from flows.running.run import caption
from penstock_demo import CHECKPOINT
from penstock_demo.clips import write_clips
from tests.support.dying import DYING, VARIABLE
from tests.support.pipeline import Place
from tests.support.wide_model import write_remembering_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CLIPS = 24
TOKENS = 24
KILLS = 10
"""Of each precision."""
TRIED_STEPS = 16
"""Steps of the trial."""


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("many") / "clips"
    write_clips(folder, CLIPS, seed=11)
    return sorted(map(str, folder.glob("*.mp4")))


def config_of(place: Place, sources: Sequence[str], **options: Any) -> CaptionConfig:
    return CaptionConfig(
        sources=tuple(sources),
        model=place.model,
        out=str(place.out),
        store=str(place.store),
        max_new_tokens=TOKENS,
        engine="inflight",
        **options,
    )


def run(config: CaptionConfig) -> tuple[RunResult, dict[str, Any]]:
    """The outcome, and the record."""
    result = caption(config, Display(quiet=True), lambda to: DirectLauncher(to, DYING))
    return result, json.loads((Path(config.out) / "run.json").read_text(encoding="utf-8"))


def test_a_budget_decides_how_many_slots_there_are_and_not_what_is_said(
    clips: list[str], tmp_path: Path
) -> None:
    model = str(write_remembering_model(tmp_path / "model"))
    place = Place(clips=tmp_path, out=tmp_path / "out", store=tmp_path / "store", model=model)
    config = config_of(place, clips[:9])
    assert run(config)[0].captions == 9
    whole = place.stored("captions")
    shutil.rmtree(place.store / "captions")
    plan = plan_of(config, DirectLauncher(lambda *_: None))
    first = plan.choices["decode"].taken.rung
    assert first.name == "8 slots, fp32"
    for slots in (8, 2, 1):
        found = next(r for r in plan.question.rungs["decode"] if r.batch == slots)
        budget = plan.question.estimate(found).peak_bytes
        there = Place(
            clips=tmp_path, out=tmp_path / f"{slots}", store=tmp_path / f"s{slots}", model=model
        )
        shutil.copytree(place.store, there.store)
        result, record = run(config_of(there, clips[:9], memory=budget))
        assert (result.captions, result.failures) == (9, [])
        assert there.stored("captions") == whole
        decode = next(stage for stage in record["stages"] if stage["name"] == "decode")
        assert decode["notes"]["slots"] == slots
        peak = decode["peak_host_bytes"] - decode["notes"]["loaded_bytes"]
        assert 0.7 * budget <= peak <= budget, f"{slots} slots: {peak / budget:.2f} of the plan"
        reasons = [r["reason"] for r in record["rungs"] if r["stage"] == "decode"]
        assert reasons == ["planned"] * (slots < 8)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_that_is_killed_at_any_step_goes_on_to_the_same_bytes(
    precision: str, clips: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With fewer of the clips, in another order, with other slots and threads each time."""
    rng = random.Random(precision)
    model = str(CHECKPOINT)
    whole = Place(clips=tmp_path, out=tmp_path / "whole", store=tmp_path / "a", model=model)
    run(config_of(whole, clips, precision=precision))
    place = Place(clips=tmp_path, out=tmp_path / "out", store=tmp_path / "b", model=model)
    deaths = tmp_path / "deaths"
    monkeypatch.setenv(VARIABLE, str(deaths))
    steps = (TRIED_STEPS + rng.randrange(1, 18) for _ in range(KILLS))
    deaths.write_text("\n".join(map(str, steps)))
    while deaths.read_text() and len(place.stored("captions")) < CLIPS:
        sources = rng.sample(clips, CLIPS)
        slots, limit = rng.choice([1, 2, 3, 8]), rng.randrange(CLIPS // 2, CLIPS)
        with suppress(Killed):
            run(config_of(place, sources, precision=precision, batch_size=slots, limit=limit))
    assert not deaths.read_text(), "it was killed as often as it was to be"
    monkeypatch.delenv(VARIABLE)
    assert run(config_of(place, clips, precision=precision))[0].captions == CLIPS
    assert place.stored("captions") == whole.stored("captions")
