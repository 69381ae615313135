"""The page of answers in a real browser: bars, a threshold with counts, the least sure first, and
decisions by keys."""

from collections.abc import Iterator

import pytest

from artifacts.texts.decisions import DECISIONS
from tests.support.answered import CLIPS, answered_clips, answers, studio_of
from tests.support.browser import Browser
from tests.support.pipeline import Place, read_lines
from tests.support.studio_page import every_look, shown
from tests.support.studios import OpenStudio

pytestmark = [pytest.mark.browser, pytest.mark.slow]

ROWS = "return [...document.querySelectorAll('.row')].map(row => row.answer.p)"
COUNTS = "return document.querySelector('#counts').textContent"
DECIDED = "return document.querySelector('#decided').textContent"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return answered_clips(tmp_path_factory.mktemp("answers"))


@pytest.fixture
def opened(place: Place) -> Iterator[OpenStudio]:
    with studio_of(place) as studio:
        yield studio


def decisions(place: Place) -> list[tuple[str, str, str]]:
    lines = read_lines(place.out / DECISIONS)
    return [(line["question"], line["tag"], line["answer"]) for line in lines]


def test_answers_are_decided_by_keys(browser: Browser, opened: OpenStudio, place: Place) -> None:
    shown(browser, opened.address)
    browser.click("#answers")
    browser.wait("return document.documentElement.dataset.ready && document.querySelector('.row')")
    of_page = browser.run(ROWS)
    ps = [answer["star"]["p"] for answer in answers(place)]
    assert of_page == sorted(ps, key=lambda p: abs(p - 0.5)), "least sure first"
    for threshold in ("0.5", "0.1"):
        script = "const t = document.querySelector('#threshold'); t.value = arguments[0]; "
        browser.run(script + "t.dispatchEvent(new Event('input'))", threshold)
        above = sum(p >= float(threshold) for p in ps)
        assert browser.run(COUNTS) == (
            f"{CLIPS - above} below {float(threshold):.2f}, {above} from it on"
        )
        marked = browser.run("return document.querySelectorAll('.row.above').length")
        assert marked == above
    for key in ("j", "y", "n", "n", "k", "u"):
        browser.press(key)
    browser.wait(f"{DECIDED} === '2 decisions on {CLIPS} answers'")
    browser.wait("return document.querySelectorAll('[aria-pressed=true]').length === 2")
    assert decisions(place) == [("star", "", label) for label in ("Yes", "No", "No", "")]
    every_look(browser)
    browser.narrow(1280)
    browser.run(
        "const q = document.querySelector('#question'); q.value = 1; "
        "q.dispatchEvent(new Event('change'))"
    )
    browser.wait(
        "const row = document.querySelector('.row'); row.focus(); return row.answer.margin"
    )
    best = browser.run("return document.querySelector('.row').answer.answer")
    for key in ("y", "3"):
        browser.press(key)
    browser.wait(f"{DECIDED} === '2 decisions on {CLIPS} answers'")
    assert decisions(place)[-2:] == [("shape", "", best), ("shape", "", "cross")]
    browser.open(browser.run("return location.href"))
    browser.wait(f"{DECIDED} === '2 decisions on {CLIPS} answers'")
    every_look(browser)
