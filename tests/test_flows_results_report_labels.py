"""The report of a run that gave labels: what is in it, and in a real browser where boxes are."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from artifacts.errors import EnvironmentFault
from artifacts.labels import Labelled
from flows.cli.main import main
from flows.job.media_files import MediaFile
from flows.results.report.facts import facts
from flows.results.report.labels import SHEET
from flows.results.report.page import page
from tests.support.browser import browsing
from tests.support.reports import labelled, media_file, scored, write_labels, write_run

EVIL = "</script><script>document.title='run'</script><img src=x onerror=\"document.title='run'\">"


def test_labels_boxes_and_counts_stand_beside_their_pictures(tmp_path: Path) -> None:
    """Two files of one name and source keep their own, as `penstock label '*/a.png'` finds them."""
    files = [media_file(tmp_path / folder / "a.png", "*/a.png") for folder in "xy"]
    rows = [
        [labelled(files[0], scored("cat", 0.4, [1, 2, 30, 40]), scored("sky", 0.3))],
        [labelled(files[1])],
    ]
    write_labels(tmp_path, list(zip(files, rows, strict=True)))
    found = facts(tmp_path, tmp_path)
    first, second = found["media"]
    assert (first["url"], second["url"]) == ("x/a.png", "y/a.png")
    assert first["labels"] == [["cat", 0.4, [1, 2, 30, 40]], ["sky", 0.3, None]]
    assert second["labels"] == [] and second["gone"]
    assert [one["label"] for one in found["labels"]["labels"]] == ["sky", "cat"]
    assert dict(found["totals"])["labelled pictures"] == "2"
    assert "tokens" not in dict(found["totals"])


def test_a_video_has_a_line_for_each_stretch_with_the_same_labels(tmp_path: Path) -> None:
    film = media_file(tmp_path / "film.mp4")
    given = ["cat", "cat", "sky", "sky"]
    rows = [labelled(film, scored(name), time=float(at)) for at, name in enumerate(given)]
    write_labels(tmp_path, [(film, rows)])
    (medium,) = facts(tmp_path, tmp_path)["media"]
    assert medium["captions"] == [[0.0, 2.0, "cat", 0], [2.0, 4.0, "sky", 0]]


def test_the_page_shows_the_first_of_very_many_and_reads_no_more(tmp_path: Path) -> None:
    files = [media_file(tmp_path / f"{at}.png") for at in range(SHEET + 9)]
    write_labels(tmp_path, [(file, [labelled(file, scored("cat"))]) for file in files])
    with (tmp_path / "labels.jsonl").open("a") as lines:
        lines.write("this is never looked at\n")
    assert len(facts(tmp_path, tmp_path)["media"]) == SHEET


def test_a_run_that_wrote_nothing_yet_has_a_report_and_one_of_an_earlier_version_too(
    tmp_path: Path,
) -> None:
    file = media_file(tmp_path / "a.png", str(tmp_path))
    file.path.touch()
    write_labels(tmp_path, [(file, [labelled(file, scored("cat"))])])
    (tmp_path / "media.jsonl").unlink()
    report = tmp_path / "label_report.json"
    told = json.loads(report.read_text())
    old = {**told, "labels": [{k: v for k, v in told["labels"][0].items() if k != "bins"}]}
    report.write_text(json.dumps({k: v for k, v in old.items() if k not in ("low", "high")}))
    assert facts(tmp_path, tmp_path)["media"][0]["url"] == "a.png"
    for name in ("labels.jsonl", "label_report.json"):
        (tmp_path / name).unlink()
    found = facts(tmp_path, tmp_path)
    assert found["labels"] is None and found["media"] == []


def test_a_damaged_count_is_named(tmp_path: Path) -> None:
    write_labels(tmp_path, [])
    (tmp_path / "label_report.json").write_text('{"pictures": "many"}')
    with pytest.raises(EnvironmentFault, match=r"label_report\.json"):
        facts(tmp_path, tmp_path)


def test_a_run_that_captions_is_told_nothing_of_labels(tmp_path: Path) -> None:
    file = media_file(tmp_path / "a.png")
    write_labels(tmp_path, [(file, [labelled(file, scored("cat"))])])
    write_run(tmp_path, [])
    found = facts(tmp_path, tmp_path)
    assert found["labels"] is None and found["media"] == []


def test_names_of_labels_cannot_leave_the_data(tmp_path: Path) -> None:
    file = media_file(tmp_path / "a.png")
    write_labels(tmp_path, [(file, [labelled(file, scored(EVIL))])])
    text = page(facts(tmp_path, tmp_path))
    assert EVIL not in text and text.count("<script") == 2
    held = re.search(r'id="data">(.*?)</script>', text, re.DOTALL)
    assert held and json.loads(held[1])["labels"]["labels"][0]["label"] == EVIL


PLACES = """const img = document.querySelector(arguments[0] + ' img').getBoundingClientRect();
return [...document.querySelectorAll(arguments[0] + ' .box rect')].map(rect => {
  const box = rect.getBoundingClientRect();
  return [box.left - img.left, box.top - img.top, box.right - img.left, box.bottom - img.top,
    img.width, img.height];
})"""


def sheet(folder: Path) -> list[tuple[MediaFile, list[Labelled]]]:
    """A wide picture with a box in it, one that is turned, and a name that is markup."""
    boxes: list[Any] = [[200, 50, 400, 100], None]
    Image.new("RGB", (400, 100), "teal").save(folder / "wide.png")
    turned = Image.new("RGB", (100, 400), "teal")
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(folder / "turned.jpg", exif=exif)
    files = [media_file(folder / name) for name in ("wide.png", "turned.jpg")]
    some = [scored(EVIL, 0.4, boxes[0]), scored("sky", 0.3)]
    return [(file, [labelled(file, *some)]) for file in files]


@pytest.mark.browser
@pytest.mark.parametrize("wide", [400, 1280])
def test_boxes_lie_where_the_picture_is_and_names_are_text(tmp_path: Path, wide: int) -> None:
    write_labels(tmp_path, sheet(tmp_path))
    assert main(["report", str(tmp_path)]) == 0
    with browsing(tmp_path / "profile") as browser:
        browser.narrow(wide)
        browser.open((tmp_path / "report.html").as_uri())
        browser.wait("return document.documentElement.dataset.ready")
        browser.run("document.querySelector('#images').scrollIntoView()")
        browser.wait("return document.querySelectorAll('.frame .box rect').length === 2")
        for place in ("figure:nth-child(1) .frame", "figure:nth-child(2) .frame"):
            ((left, top, right, bottom, width, height),) = browser.run(PLACES, place)
            # Of 400 by 100 the box is the lower right quarter; the picture fills the width.
            middle, shown = height / 2, width / 4
            wanted = [width / 2, middle, width, middle + shown / 2]
            assert [left, top, right, bottom] == pytest.approx(wanted, abs=3)
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
        named = "return document.querySelector('dialog .box text')?.textContent"
        assert browser.wait(named) == EVIL
        ((left, *_, width, _),) = browser.run(PLACES, "dialog")
        assert left == pytest.approx(width / 2, abs=3)
        assert browser.run("return document.title").startswith("done")
        assert browser.console() == []
