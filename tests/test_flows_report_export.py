"""What `penstock report` and `penstock status` tell of an export, from what it left in its
folder."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

import penstock_demo
from artifacts.files import write_json
from flows.cli.main import main
from flows.results.export_result import export_in
from flows.results.report.facts import facts
from stages.export.parity import PARITY, evaluate_parity
from tests.support.browser import browsing
from tests.support.reports import media_file, said, write_run

TEXT = {
    "captions": 3,
    "tokens": 60,
    "token_agreement": 0.999,
    "divergence": 0.002,
    "captions_as_native": 0.5,
    "by_caption": {"c" * 64: 0.004, "a" * 64: 0.0005, "b" * 64: 0.0015},
}
FEATURES = {
    "rows": 700,
    "cosine": 0.9999,
    "centred_mean": 0.993,
    "centred_least": 0.9,
    "neighbours": 0.97,
    "chunks": 2,
    "by_chunk": {"d" * 64: 0.99, "e" * 64: 0.996},
}
MISSED = "lowest centred cosine of features 0.9"
RECIPE = {"kind": "nf4", "parts": ["vision", "language"], "group": 0, "source": ["x"]}
EVIL = "</script><script>document.title='run'</script>"


def verdict(folder: Path, figures: dict[str, Any], frames: int = 80, **more: Any) -> None:
    """Write a verdict as an export does."""
    write_json(folder / PARITY, {"recipe": RECIPE, **evaluate_parity(figures, frames), **more})


def runs(out: Path) -> None:
    """Leave what the runs leave that a checkpoint is judged by."""
    film = media_file(out.parent / "film.mp4")
    native = write_run(out / "parity" / "native", [(film, said(film, ["a red circle"]))])
    write_run(out / "parity" / "exported", [])
    os.utime(native.path, (1, 1))


def test_a_report_shows_each_figure_beside_its_bound_and_the_captions_of_the_original(
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    runs(out)
    verdict(out / "rejected", {"features": FEATURES, "text": TEXT})
    found = facts(out, out)
    assert found["name"] == "out"
    assert [medium["name"] for medium in found["media"]] == ["film.mp4"]
    assert ("written as", "nf4 of vision, language") in found["about"]
    parity = found["parity"]
    assert not parity["passed"] and "rejected: lowest centred" in parity["verdict"]
    marks = {name: (value, bound, mark) for name, value, bound, mark in parity["rows"]}
    assert marks["lowest centred cosine of features"] == ("0.9", "≥ 0.95", "✕")
    assert marks["Kullback-Leibler divergence in nats per token"] == ("0.002", "≤ 0.005", "✓")
    assert marks["frames compared"] == ("80", "≥ 64", "✓")
    divergence, cosine = parity["plots"]
    assert [key[0] for key, _ in divergence["values"]] == ["a", "b", "c"]
    assert [value for _, value in cosine["values"]] == [0.99, 0.996]
    assert [line[1] for line in divergence["lines"]] == [0.002, 0.005]
    assert [line[1] for line in cosine["lines"]] == [0.993, 0.99]


def test_a_verdict_of_an_earlier_version_has_no_plots_and_keeps_its_bounds(tmp_path: Path) -> None:
    runs(tmp_path)
    text = {name: value for name, value in TEXT.items() if name != "by_caption"}
    verdict(tmp_path, {"text": text}, gates={"text.divergence": 0.001})
    parity = facts(tmp_path, tmp_path)["parity"]
    assert parity["plots"] == []
    assert parity["rows"][0][1:] == ("0.002", "≤ 0.001", "✕")


def test_the_report_lies_in_the_folder_of_the_export_and_its_words_stay_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs(tmp_path)
    verdict(tmp_path / "rejected", {"text": TEXT}, passed=False, missed=[EVIL])
    assert main(["report", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'report.html'}\n"
    page = (tmp_path / "report.html").read_text()
    assert EVIL not in page and page.count("<script") == 2
    held = re.search(r'id="data">(.*?)</script>', page, re.DOTALL)
    assert held is not None and EVIL in json.loads(held[1])["parity"]["verdict"]


@pytest.mark.parametrize(
    ("place", "figures", "line"),
    [
        (".", {"text": TEXT}, "passed: 99.90% of 60 tokens as the original"),
        (".", {"features": FEATURES}, f"accepted without passing: {MISSED}"),
        ("rejected", {"features": FEATURES}, f"rejected: {MISSED}"),
        ("", {}, "the checkpoint is not evaluated yet"),
    ],
)
def test_status_says_first_what_became_of_the_checkpoint(
    place: str,
    figures: dict[str, Any],
    line: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    runs(tmp_path)
    if place:
        verdict(tmp_path / place, figures)
    assert main(["status", str(tmp_path)]) == 0
    first, second, third, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith(line) and third.startswith("done ")
    assert second == f"last run, into {tmp_path / 'parity' / 'exported'}:"
    if place == "rejected":
        assert main(["status", str(tmp_path / "rejected")]) == 0
        assert capsys.readouterr().out.startswith(line)
    assert main(["status", str(tmp_path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["checkpoint"]["verdict"].startswith(line)
    assert told["checkpoint"]["placed"] == (place == ".")
    assert told["state"] == "done"


def test_a_checkpoint_without_its_runs_tells_its_verdict_and_has_no_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    verdict(tmp_path, {"text": TEXT})
    assert main(["status", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("passed: ")
    assert main(["status", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["checkpoint"]["parity"]["passed"]
    assert main(["report", str(tmp_path)]) == 2
    said_once = capsys.readouterr().err
    assert "no record of the runs" in said_once and said_once.count("\n") == 1


GOOD: dict[str, Any] = {"recipe": {}, "frames": 3, "gates": {}, "passed": True, "missed": []}


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "{}",
        json.dumps({**GOOD, "gates": {"text.divergence": 1}}),
        json.dumps({**GOOD, "passed": 1}),
        json.dumps({**GOOD, "frames": float("nan")}),
        json.dumps({**GOOD, "text": {**TEXT, "by_caption": [1, 2]}}),
    ],
)
def test_a_damaged_verdict_is_named_in_one_line(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs(tmp_path)
    (tmp_path / PARITY).write_text(content)
    for command in ("report", "status"):
        assert main([command, str(tmp_path)]) == 5
        told = capsys.readouterr().err
        assert f"{tmp_path / PARITY} cannot be read" in told and told.count("\n") == 1
    assert not (tmp_path / "report.html").exists()


def test_a_folder_of_a_run_is_no_export_even_with_a_verdict_in_it(tmp_path: Path) -> None:
    write_run(tmp_path, [])
    verdict(tmp_path, {"text": TEXT})
    assert export_in(tmp_path) is None
    assert facts(tmp_path, tmp_path)["parity"] is None
    assert export_in(tmp_path / "nothing") is None


@pytest.mark.browser
def test_the_page_draws_a_dot_for_each_caption_and_the_bounds(tmp_path: Path) -> None:
    runs(tmp_path)
    verdict(tmp_path / "rejected", {"features": FEATURES, "text": TEXT}, missed=[EVIL])
    assert main(["report", str(tmp_path)]) == 0
    with browsing(tmp_path / "profile") as browser:
        browser.narrow(400)
        browser.open((tmp_path / "report.html").as_uri())
        browser.wait("return document.documentElement.dataset.ready")
        count = "return document.querySelectorAll('#parity ' + arguments[0]).length"
        assert browser.run(count, ".dot") == 5
        assert browser.run(count, ".rank .plot .budget") == 2
        heights = browser.run(
            "return [...document.querySelector('#parity .rank').querySelectorAll('.dot')]"
            ".map(dot => dot.getBoundingClientRect().top)"
        )
        assert heights == sorted(heights, reverse=True)  # the least is drawn lowest
        assert EVIL in browser.run("return document.querySelector('#parity p').textContent")
        over = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert browser.run(over) == 0
        assert browser.console() == []


@pytest.mark.slow
def test_what_a_real_export_leaves_has_a_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    asked = ["export", str(penstock_demo.DUAL_CHECKPOINT), "--to", "int8", "--samples", "8"]
    assert main([*asked, "--out", str(out), "--store", str(tmp_path / "store"), "--accept"]) == 0
    capsys.readouterr()
    found = facts(out, out)
    (cosine,) = found["parity"]["plots"]
    told = json.loads((out / PARITY).read_text())["features"]
    values = [value for _, value in cosine["values"]]
    assert len(values) == told["chunks"] == 8
    assert min(values) < told["centred_mean"] < max(values) <= 1
    assert found["state"] == "done"
    assert main(["status", str(out)]) == 0
    first, second, third, *_ = capsys.readouterr().out.splitlines()
    assert "of the same neighbours" in first and str(out / "parity" / "exported") in second
    assert third.startswith("done ")
