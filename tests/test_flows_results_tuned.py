"""What a training left: read back, told in words and in its report, and never trained over
unasked."""

import json
from pathlib import Path
from typing import Any

import pytest

from artifacts.errors import EnvironmentFault, UsageError
from flows.cli.main import main
from flows.results.report.sections import MAX_POINTS, training_facts
from flows.results.tuned import RUN, TrainingFound, refuse_other_recipe, training_in, tuned_in
from stages.models.adapters.reading import ADAPTER_WEIGHTS
from stages.tune import STAGE
from stages.tune.job import RECORD
from tests.support.browser import Browser
from tests.support.reports import write_run

SCORE = {
    "exact": 0.0,
    "words": 0.2,
    "loss": 3.0,
    "samples": [{"said": "a red dog", "right": "tags: red, dog"}],
}
RECIPE = {"data": "d", "model": "m", "rank": 16, "steps": 4, "rate": 1e-3}
TUNED = {
    "recipe": RECIPE,
    "finished": True,
    "steps": 4,
    "examples": 8,
    "held_out": 2,
    "losses": [3.0, 2.0, 1.0, 0.5],
    "memory_bytes": [1 << 30] * 4,
    "held_out_losses": [[2, 1.5], [4, 0.7]],
    "best_step": 4,
    "scores": [{"step": 0, **SCORE}, {"step": 4, **SCORE, "exact": 0.5}],
}


def folder(place: Path, **changes: Any) -> Path:
    (place / RECORD).write_text(json.dumps({**TUNED, **changes}))
    (place / ADAPTER_WEIGHTS).write_bytes(b"")
    return place


def test_it_says_how_it_ended_or_how_far_it_is(tmp_path: Path) -> None:
    assert tuned_in(folder(tmp_path)).line() == (
        "4 steps: loss 3.000 to 0.500; exact on 2 held-out captions: 0% before, 50% "
        f"now; adapter in {tmp_path}"
    )
    begun = tuned_in(folder(tmp_path, finished=False, scores=[], losses=[3.0], steps=1))
    assert begun.line() == f"1 step: loss 3.000 to 3.000; unfinished adapter in {tmp_path}"


def test_one_of_an_older_version_is_read_too(tmp_path: Path) -> None:
    old = {name: v for name, v in TUNED.items() if name not in ("finished", "memory_bytes")}
    (tmp_path / RECORD).write_text(json.dumps(old))
    assert tuned_in(tmp_path).record["finished"] is True


@pytest.mark.parametrize("wrong", [{"losses": "none"}, {"steps": -1}, {"scores": [{"step": 0}]}])
def test_what_somebody_changed_is_told_in_one_line(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(EnvironmentFault) as caught:
        tuned_in(folder(tmp_path, **wrong))
    assert RECORD in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"rank": 8}, "(--lora-rank)"), ({"data": "e", "rate": 0.1}, "(the captions, --lr)")],
)
def test_adapters_are_not_trained_over(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    folder(tmp_path)
    refuse_other_recipe(tmp_path, RECIPE, resume=False)
    refuse_other_recipe(tmp_path, {**RECIPE, **changes}, resume=True)
    with pytest.raises(UsageError) as caught:
        refuse_other_recipe(tmp_path, {**RECIPE, **changes}, resume=False)
    assert says in str(caught.value) and "--resume" in str(caught.value)


def test_an_adapter_from_elsewhere_is_not_either(tmp_path: Path) -> None:
    refuse_other_recipe(tmp_path, RECIPE, resume=False)
    (tmp_path / ADAPTER_WEIGHTS).write_bytes(b"")
    with pytest.raises(UsageError, match="has no training record"):
        refuse_other_recipe(tmp_path, RECIPE, resume=False)


def test_the_report_has_curves_and_what_is_said_before_and_after(tmp_path: Path) -> None:
    assert training_in(tmp_path) is None
    training = training_in(folder(tmp_path))
    assert isinstance(training, TrainingFound)
    told = training_facts(training)
    assert told is not None
    losses, memory = told["curves"]
    assert [one["name"] for one in losses["series"]] == ["trained on", "held out"]
    assert losses["series"][0]["points"][0] == [1, 3.0]
    assert memory["series"][0]["points"][-1] == [4, 1.0]
    assert told["rows"] == [("tags: red, dog", "a red dog", "a red dog")]


def test_of_many_steps_as_many_are_drawn_as_show(tmp_path: Path) -> None:
    many = 5 * MAX_POINTS + 1
    losses = [float(at) for at in range(many)]
    training = training_in(folder(tmp_path, losses=losses, memory_bytes=[1] * many))
    told = training_facts(training) if training is not None else None
    assert told is not None
    points = told["curves"][0]["series"][0]["points"]
    assert len(points) <= MAX_POINTS + 1 and points[-1] == [many, many - 1.0]


EVIL = "<img src=x onerror=\"document.title='run'\">"


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A folder of a training whose model says markup."""
    score = {**SCORE, "samples": [{"said": EVIL, "right": "tags: red, dog"}]}
    folder(tmp_path, scores=[{"step": 0, **score}, {"step": 4, **score}])
    write_run(tmp_path / RUN, []).write(force=True)
    (tmp_path / RUN / "logs").mkdir()
    (tmp_path / RUN / "logs" / f"{STAGE.name}.log").touch()
    return tmp_path


@pytest.mark.browser
def test_curves_and_samples_are_drawn_and_nothing_is_run(browser: Browser, adapter: Path) -> None:
    assert main(["report", str(adapter)]) == 0
    browser.open((adapter / "report.html").as_uri())
    browser.wait("return document.documentElement.dataset.ready")
    assert browser.console() == []
    curves = browser.run("return document.querySelectorAll('#training path.curve').length")
    assert curves == 3, "losses of what is trained on and held out, and memory"
    shown = browser.run("return document.querySelector('#training table').innerText")
    assert EVIL in shown and "tags: red, dog" in shown
    assert browser.run("return document.title") != "run"
    assert browser.run("return document.documentElement.scrollWidth <= innerWidth")


def test_status_says_how_it_stands(adapter: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(adapter)]) == 0
    assert capsys.readouterr().out.startswith("4 steps: loss 3.000 to 0.500")
    assert main(["status", str(adapter), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["training"]["steps"] == 4
    (adapter / RECORD).unlink()
    assert main(["status", str(adapter)]) == 0
    assert capsys.readouterr().out.startswith("no step is finished yet")
