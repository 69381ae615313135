"""The page of the server in a real browser, against a real server with the demo's model."""

import base64
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from flows.interfaces.cli.main import main
from penstock_demo.dual.pictures import ImageTruth, write_images
from tests.support.browser import RIGHT, Browser
from tests.support.looks import LOOKS, asked_elsewhere, unnamed, unreadable
from tests.support.media import write_video
from tests.support.pipeline import PENSTOCK
from tests.support.serving import serving

pytestmark = [pytest.mark.browser, pytest.mark.slow]

OTHERS = ["yellow ring", "cyan square", "red ring"]
"""Labels of nothing that is shown."""
SIDE = 256
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
BOXES = """
const all = document.querySelector('.scene').getBoundingClientRect();
const x = value => (value - all.left) / all.width, y = value => (value - all.top) / all.height;
return Object.fromEntries([...document.querySelectorAll('.boxed')].map(each => {
  const {left, top, right, bottom} = each.getBoundingClientRect();
  return [each.textContent, [x(left), y(top), x(right), y(bottom)]];
}));
"""
ALL_DONE = """
const told = document.querySelector('#progress-told').textContent;
return told.startsWith(`${arguments[0]} of ${arguments[0]} `);
"""
TEXTS_OF = "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)"


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """A server with labels, and what its index holds."""

    address: str
    pictures: Path
    truths: list[ImageTruth]
    """Of the pictures in the index, each of one thing."""
    sheet: Path
    """The first four pictures in one, two by two; it is in no index."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The film shows the first three pictures in turn."""
    place = tmp_path_factory.mktemp("served")
    media, index = place / "media", str(place / "index")
    truths = write_images(media, "trained", 8, 5)
    pictures = [Image.open(media / truth.file).convert("RGB") for truth in truths[:4]]
    stills = [np.asarray(picture.resize((SIDE, SIDE))) for picture in pictures]
    rows = [np.concatenate(stills[at : at + 2], axis=1) for at in (0, 2)]
    Image.fromarray(np.concatenate(rows)).save(place / "sheet.png")

    def frame(at: int, *_: int) -> NDArray[np.uint8]:
        return stills[at // (10 * SHOWN_SECONDS)]

    ticks = range(0, 3 * 30 * SHOWN_SECONDS, 3)
    write_video(media / "film.mp4", ticks=ticks, size=(SIDE, SIDE), draw=frame)
    where = ["--model", "demo", "--store", str(place / "store")]
    assert main(["index", "build", str(media), "--out", index, "--quiet", *where]) == 0
    names = ",".join(dict.fromkeys([*(truth.labels[0] for truth in truths), *OTHERS]))
    more = ["--index", index, "--labels", names, "--tiles", "2"]
    more += ["--caption-model", "demo"]
    with serving(place, *more, *where, command=[*PENSTOCK, "serve"]) as server:
        address = f"http://127.0.0.1:{server.port}"
        yield Served(address=address, pictures=media, truths=truths, sheet=place / "sheet.png")


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
    first = "document.querySelectorAll('.bars li:first-child')"
    page.wait(f"return {first}.length === arguments[0]", count, seconds=60)


def seek(page: Browser, text: str) -> None:
    page.run("document.querySelector('#search').scrollIntoView()")
    page.type("#query", text)
    page.click("#find button[type=submit]")
    page.wait("return document.querySelectorAll('#hits li').length")


def test_a_dropped_picture_gets_bars_and_boxes_that_light_up(page: Browser, served: Served) -> None:
    drop(page, served.sheet, kind="image/png")
    labelled(page)
    names = [truth.labels[0] for truth in served.truths[:4]]
    assert set(page.run(TEXTS_OF, ".bars .passed .called")) == set(names)
    scores = [float(text) for text in page.run(TEXTS_OF, ".bars .number")]
    assert scores == sorted(scores, reverse=True) and len(scores) > 4
    lengths = page.run(
        "return [...document.querySelectorAll('.bar')].map(e => e.querySelector('.length')"
        ".getBoundingClientRect().width / e.getBoundingClientRect().width)"
    )
    assert lengths == pytest.approx(scores, abs=0.01)
    page.wait("return document.querySelector('.scene img').complete")
    boxes = page.run(BOXES)
    for at, name in enumerate(names):  # each thing is in its quarter
        left, top = (at % 2) / 2, at // 2 / 2
        assert boxes[name] == pytest.approx([left, top, left + 0.5, top + 0.5], abs=0.02)
    page.hover(f".bars button[data-name='{names[2]}']", 0, 0)
    assert page.wait(TEXTS_OF, ".boxed.on") == [names[2]]
    assert page.run(TEXTS_OF, ".why")[0].startswith(f"{names[2]}: ")


def test_labels_of_ones_own_are_asked_and_shown_as_text(page: Browser, served: Served) -> None:
    evil = "<img src=x onerror=alert(1)>"
    page.type("#labels", f"a yellow ring, {evil}")
    assert page.run(TEXTS_OF, "#limits") == ["up to 67.1 MB each, 50 megapixels, 10 minutes"]
    drop(page, served.pictures / served.truths[1].file)
    labelled(page)
    assert set(page.run(TEXTS_OF, ".bars .called")) == {"a yellow ring", evil}
    assert page.run("return document.querySelectorAll('main img').length") == 1


def test_a_clip_has_labels_in_time_and_is_entered_by_them(page: Browser, served: Served) -> None:
    drop(page, served.pictures / "film.mp4", kind="video/mp4")
    labelled(page)
    names = [truth.labels[0] for truth in served.truths[:3]]
    assert page.run(TEXTS_OF, ".lines .called")[:3] == names
    video = "const v = document.querySelector('.item video'); "
    page.wait(video + "return v.readyState >= 1")
    page.click(f".track button[aria-label^='{names[2]}']")
    page.wait(f"{video} return !v.seeking && Math.abs(v.currentTime - {2 * SHOWN_SECONDS}) < 1.1")
    first = f"return {TEXTS_OF.removeprefix('return ')}[0] === arguments[1]"
    page.wait(first, ".bars .called", names[2])
    assert page.run("return parseFloat(document.querySelector('.position').style.left)") > 50


def test_captions_are_written_under_their_stretches(page: Browser, served: Served) -> None:
    ticked = "return [...document.querySelectorAll('#kinds input')].map(e => e.checked)"
    assert page.run(ticked) == [True, True]
    page.click("#want-labels")
    drop(page, served.pictures / "film.mp4", kind="video/mp4")
    drop(page, served.pictures / served.truths[0].file)
    page.wait(ALL_DONE, 2, seconds=120)
    still, film = page.run(
        "return [...document.querySelectorAll('.captions')]"
        ".map(e => [...e.querySelectorAll('p')].map(each => each.textContent))"
    )
    assert all(still) and all(film) and len(still) == 1
    times = page.run(TEXTS_OF, ".captions time")
    assert len(times) == len(film) and times[0] == "0:00.0"
    assert page.run("return document.querySelectorAll('.writing, .bars li').length") == 0


def test_a_text_finds_moments_of_a_film_to_step_through(page: Browser, served: Served) -> None:
    """The second thing is shown in the middle of the film."""
    seek(page, f"a photo of a {served.truths[1].labels[0]}")
    page.wait("return document.querySelector('#hits .when')")
    films = "[...document.querySelectorAll('#hits li')].findIndex(e => e.querySelector('.when'))"
    page.click("#hits .frame", page.run(f"return {films}"))
    video = "const v = document.querySelector('#viewer video'); "
    page.wait(video + "return v?.readyState >= 2 && !v.seeking && v.currentTime > 0")
    at = page.run(video + "return v.currentTime")
    assert SHOWN_SECONDS - 0.1 <= at <= 2 * SHOWN_SECONDS
    shown = page.run(TEXTS_OF, ".moments button")
    assert len(page.run(TEXTS_OF, ".moments [aria-current=true]")) == 1
    for number, text in enumerate(shown):
        page.click(".moments button", number)
        page.wait(video + "return !v.seeking && v.readyState >= 2")
        times = re.findall(r"(\d+):([\d.]+)", text * 2)[:2]
        start, end = (60 * int(minutes) + float(seconds) for minutes, seconds in times)
        assert start - 0.1 <= page.run(video + "return v.currentTime") <= max(start, end) + 0.1
    page.press(RIGHT)
    page.press(ESCAPE)
    page.wait("return !document.querySelector('#viewer').open")
    assert page.run("return document.activeElement.matches('#hits .frame')")


def test_a_picture_finds_itself_and_more_like_a_hit(page: Browser, served: Served) -> None:
    expected = served.truths[3].file
    page.run("document.querySelector('#search').scrollIntoView()")
    drop(page, served.pictures / expected, onto="#query")
    page.wait("return document.querySelectorAll('#hits li').length")
    assert page.run(TEXTS_OF, "#hits .name")[0] == expected
    second = page.run(TEXTS_OF, "#hits .name")[1]
    page.click("#hits .small", 1)
    page.wait("return document.querySelector('#sought').textContent.includes(arguments[0])", second)
    page.wait("return document.querySelector('#hits .name').textContent === arguments[0]", second)


def test_the_plots_are_drawn_and_grow_and_the_halves_are_told(page: Browser) -> None:
    page.click("nav [href='#load']")
    page.wait("return document.querySelectorAll('.drawn svg').length === 4")
    drawn = "return document.querySelector('#plot-memory .curve')"
    drawn += "?.getAttribute('d').split('L').length"
    before = page.wait(drawn)
    page.wait(f"{drawn} > arguments[0]", before)
    page.hover("#plot-memory .drawn", 100, 0)
    tip = "return document.querySelector('#plot-memory .tip:not([hidden])')?.innerText"
    message = page.wait(tip)
    assert re.fullmatch(r"\d+ s ago\ntaken [\d.]+ [kMG]?B(\nbudget [\d.]+ [MG]B)?", message)
    assert page.wait(TEXTS_OF, "#halves tbody tr")
    (budget,) = page.run(TEXTS_OF, "#plot-memory dd:last-child")[-1:]
    assert re.match(r"[\d.]+ [MG]B", budget)


def test_it_can_be_read_in_every_light_and_on_a_narrow_screen(
    page: Browser, served: Served
) -> None:
    drop(page, served.pictures / served.truths[4].file)
    drop(page, served.sheet, kind="image/png")
    drop(page, served.pictures / "film.mp4", kind="video/mp4")
    page.wait(ALL_DONE, 3, seconds=120)
    seek(page, "a yellow ring")
    page.click("nav [href='#load']")
    page.wait("return document.querySelectorAll('.drawn svg').length === 4")
    page.narrow(1280, page.run("return document.documentElement.scrollHeight"))  # all is drawn
    page.wait("return [...document.images].every(image => image.complete)")
    assert "[object" not in page.run("return document.body.innerText")
    assert [wrong for look in LOOKS for wrong in unreadable(page, *look)] == []
    page.click("#hits .frame")
    page.wait("return document.querySelector('#viewer').open")
    assert unnamed(page) == []
    page.press(ESCAPE)
