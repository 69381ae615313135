"""The report of a sift run in a real browser: a threshold is moved, and what falls out is
counted."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from benchmarks._planted import drawn
from flows.cli.main import main
from tests.support.browser import RIGHT, browsing

pytestmark = [pytest.mark.browser, pytest.mark.slow]
TEXT = "return document.querySelector(arguments[0]).innerText"
SLIDER = "#mark-sharpness input"


def test_a_moved_threshold_counts_what_falls_out(tmp_path: Path) -> None:
    (tmp_path / "media").mkdir()
    scene = next(drawn(np.random.default_rng(4))).resize((320, 200))
    for number, blur in enumerate((0, 1, 2, 4)):
        picture = scene.filter(ImageFilter.GaussianBlur(blur))
        picture.transpose(Image.Transpose(number)).save(tmp_path / "media" / f"{number}.png")
    out = tmp_path / "out"
    assert main(["sift", str(tmp_path / "media"), "--quiet", "--out", str(out)]) == 0
    assert main(["report", str(out)]) == 0
    with browsing(tmp_path / "profile") as browser:
        browser.open((out / "report.html").as_uri())
        summary = "#run p[aria-live]"
        assert browser.run(TEXT, summary).startswith("0 files of 4")
        browser.run("document.querySelector(arguments[0]).focus()", SLIDER)
        for count in (1, 2, 3):
            browser.press(RIGHT)
            text = f"return document.querySelector('{summary}').innerText.startsWith(arguments[0])"
            assert browser.wait(text, f"{count} file")
        browser.press(RIGHT)  # no further: the best one stays
        assert browser.run(TEXT, summary).startswith("3 files of 4 (75.0 %) fall out with --keep ")
        assert "sharpness >= " in browser.run(TEXT, f"{summary} code")
        constant = "return document.querySelectorAll('#mark-exact input').length"
        assert browser.run(constant) == 0
        assert browser.console() == []
