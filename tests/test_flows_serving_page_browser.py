"""The page of the server in a real browser, against the real server with the demo's model: pictures
are labelled, an index is searched, a film is gone into, and all of it can be read."""

import base64
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from flows.cli.main import main
from penstock_demo.dual.pictures import PictureTruth, write_pictures
from tests.support.browser import RIGHT, Browser, browsing
from tests.support.looks import asked_elsewhere, faint, overlapping, too_wide, unnamed
from tests.support.media import write_video
from tests.support.pipeline import PENSTOCK, ROOT

pytestmark = [pytest.mark.browser, pytest.mark.slow]

NAMES = [
    f"{colour} {shape}" for colour in ("yellow", "cyan", "red") for shape in ("ring", "square")
]
FILM = (240, 320)
SHOWN_SECONDS = 4
"""Of each picture in the film."""
ESCAPE = "\ue00c"
DROP = """
const [name, type, data, onto] = arguments, carried = new DataTransfer();
const bytes = Uint8Array.from(atob(data), letter => letter.charCodeAt(0));
carried.items.add(new File([bytes], name, {type}));
for (const kind of ['dragenter', 'dragover', 'drop']) document.querySelector(onto)
  .dispatchEvent(new DragEvent(kind, {bubbles: true, cancelable: true, dataTransfer: carried}));
"""
TEXTS_OF = "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)"
LOOKS = [(1280, "light"), (1280, "dark"), (400, "light"), (400, "dark")]


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """A server, and the pictures that it was given an index of."""

    address: str
    pictures: Path
    truths: list[PictureTruth]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A film shows the first three pictures in turn; the server has labels and this index."""
    place = tmp_path_factory.mktemp("served")
    truths = write_pictures(place / "media", "several", 8, 5)
    stills = [_still(place / "media" / truth.file) for truth in truths[:3]]

    def frame(at: int, *_: int) -> NDArray[np.uint8]:
        return stills[at // (10 * SHOWN_SECONDS)]

    ticks = range(0, 30 * SHOWN_SECONDS * 3, 3)
    write_video(place / "media" / "film.mp4", ticks=ticks, size=FILM, draw=frame)
    where = ["--model", "demo", "--store", str(place / "store")]
    index = str(place / "index")
    assert main(["index", "build", str(place / "media"), "--out", index, "--quiet", *where]) == 0
    names = ",".join(dict.fromkeys([*(each for truth in truths for each in truth.labels), *NAMES]))
    command = [*PENSTOCK, "serve", "--port", "0", "--index", index, "--labels", names, *where]
    with subprocess.Popen(
        [*command, "--tiles", "2"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None
            said = server.stdout.readline()
            found = re.search(r"http://[\w.:]+", said)
            assert found, said
            yield Served(address=found[0], pictures=place / "media", truths=truths)
        finally:
            server.send_signal(signal.SIGTERM)
            server.communicate()


def _still(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB").resize(FILM[::-1]))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browsing(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the screenshots stay for whoever wants to look."""
    named = os.environ.get("PENSTOCK_TEST_SCREENSHOTS")
    folder = Path(named) if named else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def page(browser: Browser, served: Served) -> Iterator[Browser]:
    """The page, loaded anew; nothing may have gone wrong on it, and nobody else been asked."""
    browser.narrow(1280)
    browser.console()
    browser.open(served.address)
    browser.wait("return document.documentElement.dataset.ready")
    yield browser
    assert browser.console() == []
    assert asked_elsewhere(browser) == []


def drop(page: Browser, path: Path, onto: str = "#drop", kind: str = "image/jpeg") -> None:
    data = base64.b64encode(path.read_bytes()).decode()
    page.run(DROP, path.name, kind, data, onto)


def labelled(page: Browser, count: int = 1) -> None:
    page.wait(
        "return document.querySelectorAll('.bars li:first-child').length === arguments[0]", count
    )


def seek(page: Browser, text: str) -> None:
    page.run("document.querySelector('#search').scrollIntoView()")
    page.type("#query", text)
    page.click("#find button[type=submit]")
    page.wait("return document.querySelectorAll('#hits li').length")


def test_a_picture_that_is_dropped_gets_bars_and_boxes_that_light_each_other(
    page: Browser, served: Served
) -> None:
    drop(page, served.pictures / served.truths[0].file)
    labelled(page)
    passed = page.run(TEXTS_OF, ".bars .passed .called")
    assert passed and set(passed) & set(served.truths[0].labels)
    scores = [float(text) for text in page.run(TEXTS_OF, ".bars .number")]
    assert scores == sorted(scores, reverse=True)
    lengths = page.run(
        "return [...document.querySelectorAll('.bar .length')]"
        ".map(e => e.getBoundingClientRect().width)"
    )
    assert lengths == sorted(lengths, reverse=True) and lengths[0] > 50
    page.wait("return document.querySelector('.boxed')")
    inside = page.run(
        "const all = document.querySelector('.scene').getBoundingClientRect();"
        "return [...document.querySelectorAll('.boxed')].map(e => e.getBoundingClientRect())"
        ".every(e => e.left >= all.left - 1 && e.right <= all.right + 1 && e.width > 9)"
    )
    assert inside
    boxed = page.run(TEXTS_OF, ".boxed")
    page.hover(f".bars button[data-name='{boxed[0]}']", 0, 0)
    assert page.wait(TEXTS_OF, ".boxed.on") == [boxed[0]]
    assert page.run(TEXTS_OF, ".why")[0].startswith(f"{boxed[0]}: ")


def test_labels_of_ones_own_are_asked_and_shown_as_text(page: Browser, served: Served) -> None:
    evil = "<img src=x onerror=alert(1)>"
    page.type("#labels", f"a yellow ring, {evil}")
    drop(page, served.pictures / served.truths[1].file)
    labelled(page)
    assert set(page.run(TEXTS_OF, ".bars .called")) == {"a yellow ring", evil}
    assert page.run("return document.querySelectorAll('main img').length") == 1


def test_a_clip_has_its_labels_in_time_and_is_gone_into_by_them(
    page: Browser, served: Served
) -> None:
    drop(page, served.pictures / "film.mp4", kind="video/mp4")
    labelled(page)
    starts = page.run(TEXTS_OF, ".lines .called")
    assert starts
    last = page.run("return document.querySelectorAll('.track button').length") - 1
    page.wait("return document.querySelector('.item video').readyState >= 1")
    page.click(".track button", last)
    moment = (
        "const v = document.querySelector('.item video'); return !v.seeking && v.currentTime > 0"
    )
    page.wait(moment)
    assert page.run("return document.querySelector('.position').style.left") != "0%"


def test_a_text_finds_moments_of_a_film_that_can_be_stepped_through(
    page: Browser, served: Served
) -> None:
    seek(page, f"a photo of a {served.truths[1].labels[0]}")
    page.wait("return document.querySelector('#hits .when')")
    at = page.run(
        "return [...document.querySelectorAll('#hits li')].findIndex(e => e.querySelector('.when'))"
    )
    page.click("#hits .frame", at)
    video = "const v = document.querySelector('#viewer video'); "
    page.wait(video + "return v?.readyState >= 2 && !v.seeking && v.currentTime > 0")
    first = page.run(video + "return v.currentTime")
    moments = page.run("return document.querySelectorAll('.moments button').length")
    current = page.run(TEXTS_OF, ".moments [aria-current=true]")
    assert len(current) == 1
    start, end = (_seconds(text) for text in re.findall(r"\d+:[\d.]+", current[0] * 2)[:2])
    assert start - 0.1 <= first <= max(end, start + 1.1)
    other = next(n for n in range(moments) if moments == 1 or n != at)
    page.click(".moments button", min(other, moments - 1))
    page.wait(video + "return !v.seeking")
    page.press(RIGHT)
    page.press(ESCAPE)
    page.wait("return !document.querySelector('#viewer').open")
    assert page.run("return document.activeElement.matches('#hits .frame')")


def _seconds(told: str) -> float:
    minutes, seconds = told.split(":")
    return 60 * int(minutes) + float(seconds)


def test_a_picture_finds_itself_and_more_like_a_hit(page: Browser, served: Served) -> None:
    wanted = served.truths[3].file
    page.run("document.querySelector('#search').scrollIntoView()")
    drop(page, served.pictures / wanted, onto="#query")
    page.wait("return document.querySelectorAll('#hits li').length")
    assert page.run(TEXTS_OF, "#hits .name")[0] == wanted
    second = page.run(TEXTS_OF, "#hits .name")[1]
    page.click("#hits .small", 1)
    page.wait("return document.querySelector('#sought').textContent.includes(arguments[0])", second)
    page.wait("return document.querySelector('#hits .name').textContent === arguments[0]", second)


def test_the_plots_are_drawn_and_grow_and_the_halves_are_told(page: Browser) -> None:
    page.run("document.querySelector('#load').scrollIntoView()")
    page.wait("return document.querySelectorAll('.drawn .main-svg').length >= 4")
    count = "return document.querySelector('#plot-memory .drawn').data[0].x.length"
    before = page.wait(count)
    page.wait(f"{count} > arguments[0]", before)
    assert page.wait(TEXTS_OF, "#halves tbody tr")
    (budget,) = page.run(TEXTS_OF, "#plot-memory dd:last-child")[-1:]
    assert budget.endswith(("MB", "GB"))


@pytest.mark.parametrize(("wide", "theme"), LOOKS)
def test_it_can_be_read_in_every_light_and_on_a_narrow_screen(
    page: Browser, served: Served, kept: Path, wide: int, theme: str
) -> None:
    page.narrow(wide)
    if theme == "dark":
        page.click("#theme")
    for truth in served.truths[:2]:
        drop(page, served.pictures / truth.file)
    drop(page, served.pictures / "film.mp4", kind="video/mp4")
    labelled(page, 3)
    seek(page, "a yellow ring")
    page.run("document.querySelector('#load').scrollIntoView()")
    page.wait("return document.querySelectorAll('.drawn .main-svg').length >= 4")
    page.wait("return document.querySelector('#plot-memory .xtick text')")
    high = page.run("return document.documentElement.scrollHeight")
    page.run("scrollTo(0, 0)")
    page.narrow(wide, high)  # so that all of it is drawn
    page.wait("return [...document.images].every(image => image.complete)")
    (kept / f"page-{wide}-{theme}.png").write_bytes(page.screenshot())
    assert overlapping(page) == []
    assert faint(page) == []
    assert too_wide(page) == []
    assert unnamed(page) == []
    page.narrow(wide)
    page.click("#hits .frame")
    page.wait("return document.querySelector('#viewer').open")
    (kept / f"viewer-{wide}-{theme}.png").write_bytes(page.screenshot())
    assert unnamed(page) == []
    page.press(ESCAPE)
