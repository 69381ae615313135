"""What a person sees of a report on wide and narrow screens, light, dark and on paper; and that
what is asked for is shown, in the order that is asked for."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from PIL import Image

from artifacts.captions import Failure
from flows.cli.main import main
from tests.support.browser import Browser, browsing
from tests.support.looks import faint, overlapping, too_wide, unnamed
from tests.support.media import write_video
from tests.support.reports import curve, media_file, said, started_ago, work, write_run

pytestmark = pytest.mark.browser

GB = 10**9
NAMES = "return [...document.querySelectorAll('.card h3')].map(e => e.textContent)"
CHOOSE = """const one = document.getElementById(arguments[0]);
one.value = arguments[1]; one.dispatchEvent(new Event('change'))"""
IN_SIGHT = (
    "document.querySelectorAll('.whole').forEach(e => { e.style.contentVisibility = 'visible' })"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browsing(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of the report on a run of which four files failed, far below its budget."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "clips").mkdir()
    clip = write_video(folder / "clips" / "b.mp4", ticks=range(0, 360, 6))
    captioned = []
    for name, count in (("b.mp4", 2), ("c10.mp4", 3), ("c9.mp4", 1), ("a.mp4", 2)):
        path = folder / "clips" / name
        if path != clip:
            path.hardlink_to(clip)
        rows = said(media_file(path), [f"{name} {'and on ' * n}" for n in range(count)])
        if name == "a.mp4":
            rows[0] = replace(rows[0], ended="length")
        captioned.append((media_file(path), rows))
    picture = folder / "clips" / "p.png"
    Image.new("RGB", (40, 30), "red").save(picture)
    captioned.append((media_file(picture), said(media_file(picture), ["A picture."])))
    failures = [
        Failure(
            media_path=f"bad {n}.mp4", source="s", stage="frames", error="e", message="m", hint="h"
        )
        for n in range(4)
    ]
    record = write_run(folder, captioned, failures)
    budget = {"rung": {"stage": "decode"}, "peak_bytes": GB, "name": "batch 4"}
    record.value["plan"]["memory"] = {"budget_bytes": 17 * GB, "stages": [budget]}
    work(record, "encode", 1.0, 30.0, curve(30, GB // 10, GB // 2))
    work(record, "decode", 31.0, 30.0, curve(30, GB // 10, GB // 2))
    started_ago(record, 61.0)
    assert main(["report", str(folder)]) == 0
    return (folder / "report.html").as_uri()


def shown(browser: Browser, address: str) -> None:
    browser.open(address)
    browser.wait("return document.documentElement.dataset.ready")


def test_media_are_shown_as_they_are_asked_for_in_the_order_that_is_asked_for(
    browser: Browser, address: str
) -> None:
    shown(browser, address)
    assert browser.run(NAMES) == ["b.mp4", "c10.mp4", "c9.mp4", "a.mp4"]
    for sort, names in (
        ("name", ["a.mp4", "b.mp4", "c9.mp4", "c10.mp4"]),
        ("longest", ["c10.mp4", "b.mp4", "a.mp4", "c9.mp4"]),
        ("most", ["c10.mp4", "b.mp4", "a.mp4", "c9.mp4"]),
        ("long", ["c10.mp4", "b.mp4", "a.mp4", "c9.mp4"]),
    ):
        browser.run(CHOOSE, "sort", sort)
        assert browser.run(NAMES) == names, sort
    browser.run(CHOOSE, "filter", "cut")
    assert browser.run(NAMES) == ["a.mp4"]
    assert browser.run("return document.querySelector('.captions .chip').textContent") == "cut"
    browser.run(CHOOSE, "filter", "failed")
    assert browser.run(NAMES) == []
    browser.run(CHOOSE, "filter", "all")
    wide = "return document.querySelector('.card').getBoundingClientRect().width"
    grid = browser.run(wide)
    browser.run(CHOOSE, "view", "list")
    assert browser.run(wide) > 2 * grid


def test_a_run_of_which_files_failed_is_not_told_as_a_good_one(
    browser: Browser, address: str
) -> None:
    shown(browser, address)
    badge = "const badge = document.querySelector('.badge'); return "
    assert browser.run(badge + "badge.textContent") == "! done, 4 failed"
    assert browser.run("return document.title").startswith("done, 4 failed")
    warned = "getComputedStyle(document.querySelector('.warning')).backgroundColor"
    assert browser.run(f"{badge} getComputedStyle(badge).backgroundColor === {warned}")


def test_all_captions_are_on_paper(browser: Browser, address: str) -> None:
    shown(browser, address)
    browser.run("scrollTo(0, 0)")
    browser.print_media(True)
    browser.wait(
        "const all = [...document.querySelectorAll('.captions button, figcaption')];"
        "return all.length === 9 && all.every(e => e.getBoundingClientRect().height > 5"
        " && e.checkVisibility({contentVisibilityAuto: true}))"
    )
    browser.print_media(False)


@pytest.mark.slow
@pytest.mark.parametrize("wide", [400, 1280])
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("view", ["grid", "list"])
def test_nothing_lies_on_anything_else_and_all_can_be_read(
    browser: Browser, address: str, wide: int, theme: str, view: str
) -> None:
    browser.narrow(wide)
    shown(browser, address)
    browser.run("document.documentElement.dataset.theme = arguments[0]", theme)
    browser.run(CHOOSE, "view", view)
    browser.run(IN_SIGHT)
    browser.wait("return document.querySelector('.plot .note')")
    assert overlapping(browser) == []
    assert too_wide(browser) == []
    assert faint(browser) == []
    assert unnamed(browser) == []
    browser.narrow(1280)
