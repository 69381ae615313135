"""The reports of labels and of sift runs in a real browser: boxes on pictures, and a threshold that
is moved while what falls out is counted."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from flows.interfaces.cli.main import main
from tests.support.browser import RIGHT, Browser
from tests.support.builders.planted import drawn
from tests.support.reports import labelled, media_file, scored, write_labels
from tests.support.studio_page import shown

pytestmark = pytest.mark.browser
TEXT = "return document.querySelector(arguments[0]).innerText"
SLIDER = "#mark-sharpness input"
EVIL = "<script>document.title='run'</script><img src=x onerror=\"document.title='run'\">"


@pytest.mark.slow
def test_a_moved_threshold_counts_what_falls_out(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "media").mkdir()
    scene = next(drawn(np.random.default_rng(4))).resize((320, 200))
    for number, blur in enumerate((0, 1, 2, 4)):
        picture = scene.filter(ImageFilter.GaussianBlur(blur))
        picture.transpose(Image.Transpose(number)).save(tmp_path / "media" / f"{number}.png")
    Image.new("RGB", (320, 200)).save(tmp_path / "media" / "black.png")  # it has no sharpness
    out = tmp_path / "out"
    assert main(["sift", str(tmp_path / "media"), "--quiet", "--out", str(out)]) == 0
    assert main(["report", str(out)]) == 0
    browser.open((out / "report.html").as_uri())
    summary = "#run p[aria-live]"
    assert browser.run(TEXT, summary).startswith("0 files of 5")
    browser.run("document.querySelector(arguments[0]).focus()", SLIDER)
    for count in (2, 3, 4):  # a null meets no comparison
        browser.press(RIGHT)
        text = f"return document.querySelector('{summary}').innerText.startsWith(arguments[0])"
        assert browser.wait(text, f"{count} file")
    browser.press(RIGHT)  # no further: the best one stays
    assert browser.run(TEXT, summary).startswith("4 files of 5 (80.0 %) fall out with --keep ")
    assert "sharpness >= " in browser.run(TEXT, f"{summary} code")
    constant = "return document.querySelectorAll('#mark-exact input').length"
    assert browser.run(constant) == 0
    assert browser.console() == []


@pytest.mark.slow
def test_copies_come_first_and_say_how_many_they_are(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "media").mkdir()
    scene = next(drawn(np.random.default_rng(4))).resize((320, 200))
    for number in range(8):
        scene.save(tmp_path / "media" / f"{number}.png")
    out = tmp_path / "out"
    assert main(["sift", str(tmp_path / "media"), "--quiet", "--out", str(out)]) == 0
    assert main(["report", str(out)]) == 0
    browser.open((out / "report.html").as_uri())
    assert browser.wait(TEXT, "#copies .card").endswith("and 2 more")
    sections = "return [...document.querySelectorAll('section')].map(e => e.id)"
    assert browser.run(sections) == ["run", "copies", "marks"]
    assert browser.console() == []


PLACES = """const img = document.querySelector(arguments[0] + ' img').getBoundingClientRect();
return [...document.querySelectorAll(arguments[0] + ' .boxed')].map(each => {
  const box = each.getBoundingClientRect();
  return [box.left - img.left, box.top - img.top, box.right - img.left, box.bottom - img.top,
    img.width, img.height];
})"""


@pytest.mark.slow
@pytest.mark.parametrize("wide", [400, 1280])
def test_boxes_lie_on_pictures_names_are_text(browser: Browser, tmp_path: Path, wide: int) -> None:
    # A wide picture with a box in it, one that is turned, and a name that is markup.
    Image.new("RGB", (400, 100), "teal").save(tmp_path / "wide.png")
    turned = Image.new("RGB", (100, 400), "teal")
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    files = [media_file(tmp_path / name) for name in ("wide.png", "turned.jpg")]
    some = [scored(EVIL, 0.4, [200, 50, 400, 100]), scored("sky", 0.3)]
    write_labels(tmp_path, [(file, [labelled(file, *some)]) for file in files])
    browser.narrow(wide)
    assert main(["report", str(tmp_path)]) == 0
    shown(browser, (tmp_path / "report.html").as_uri())
    assert browser.console() == []
    browser.run("document.querySelector('#images').scrollIntoView()")
    browser.wait("return document.querySelectorAll('.frame .boxed').length === 2")
    for place in ("figure:nth-child(1) .frame", "figure:nth-child(2) .frame"):
        ((left, top, right, bottom, width, height),) = browser.run(PLACES, place)
        # Of 400 by 100 the box is the lower right quarter.
        expected = [width / 2, height / 2, width, height]
        assert width == pytest.approx(4 * height, abs=3)
        assert [left, top, right, bottom] == pytest.approx(expected, abs=3)
    assert browser.run("return document.querySelector('.chip').textContent") == f"{EVIL} 0.40"
    assert browser.run("return document.querySelector('.called').textContent") == "sky"
    assert browser.run("return document.querySelectorAll('.scores .bins').length") == 2
    under = "const [plot, text] = document.querySelector('.lies').children; "
    under += "return text.getBoundingClientRect().top - plot.getBoundingClientRect().bottom"
    assert browser.run(under) >= 3
    assert browser.run("return innerWidth") == wide
    over = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert browser.run(over) == 0
    browser.click("figure .frame")
    named = "return document.querySelector('dialog .boxed span')?.textContent"
    assert browser.wait(named) == EVIL
    ((left, *_, width, _),) = browser.run(PLACES, "dialog")
    assert left == pytest.approx(width / 2, abs=3)
    assert browser.run("return document.title").startswith("done")
    assert browser.console() == []
    browser.narrow(1280)
