"""The report of a training in a real browser: its curves, and what the model says before and after,
which is shown as text whatever it is."""

import json
from pathlib import Path

import pytest

from flows.cli.main import main
from flows.results.tuned import RUN
from stages.tune import STAGE
from stages.tune.job import RECORD
from tests.support.browser import Browser
from tests.support.reports import write_run
from tests.test_flows_results_tuned import SCORE, folder

pytestmark = pytest.mark.browser

EVIL = "<img src=x onerror=\"document.title='run'\">"


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    samples = [{"said": EVIL, "right": "tags: red, dog"}]
    score = {**SCORE, "samples": samples}
    folder(tmp_path, scores=[{"step": 0, **score}, {"step": 4, **score}])
    write_run(tmp_path / RUN, []).write(force=True)
    (tmp_path / RUN / "logs").mkdir()
    (tmp_path / RUN / "logs" / f"{STAGE.name}.log").touch()
    return tmp_path


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
    wide = "return document.documentElement.scrollWidth <= innerWidth"
    assert browser.run(wide)


def test_status_says_how_it_stands(adapter: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(adapter)]) == 0
    assert capsys.readouterr().out.startswith("4 steps: loss 3.000 to 0.500")
    assert main(["status", str(adapter), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["training"]["steps"] == 4
    (adapter / RECORD).unlink()
    assert main(["status", str(adapter)]) == 0
    assert capsys.readouterr().out.startswith("no step is finished yet")
