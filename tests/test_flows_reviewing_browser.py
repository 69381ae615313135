"""A review in a real browser: edits by keys, a server that is killed, and how it looks."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from artifacts.captions import Failure
from artifacts.edits import read_edits
from tests.support.browser import Browser
from tests.support.media import write_video
from tests.support.reports import media_file, said, write_run
from tests.support.reviewing import (
    ENTER,
    SAVED,
    WORDS,
    Reviewing,
    at,
    choose,
    correct,
    shown,
    wait_saved,
)
from tests.support.studio_page import COUNTS, TAB, every_look

pytestmark = [pytest.mark.browser, pytest.mark.slow]

VIDEOS, CHUNKS = 300, 10


@pytest.fixture
def reviewing(tmp_path: Path) -> Iterator[Reviewing]:
    """A review of 300 videos with 3,000 captions."""
    (tmp_path / "clips").mkdir()
    clip = write_video(tmp_path / "clips" / "0.mp4", ticks=range(0, 360, 6))
    captioned = []
    for number in range(VIDEOS):
        path = tmp_path / "clips" / f"{number}.mp4"
        if number:
            path.hardlink_to(clip)
        file = media_file(path)
        texts = [f"A small ring of {number} moves to place {n}" for n in range(CHUNKS)]
        captioned.append((file, said(file, texts, 1.2)))
    gone = dict.fromkeys(("media_path", "source", "stage", "error", "message", "hint"), "gone.mp4")
    write_run(tmp_path / "out", captioned, [Failure(**gone)])
    made = Reviewing(tmp_path / "out")
    made.start()
    yield made
    if made.process is not None and made.process.poll() is None:
        made.kill()


def test_edits_undos_and_replacements_stay_after_a_kill(
    browser: Browser, reviewing: Reviewing
) -> None:
    shown(browser, reviewing)
    assert browser.run(COUNTS).startswith("3,000 captions · 3,000 not decided")
    for number in range(20):
        correct(browser, number, f"W{number}")
    at(browser, 20)
    browser.press(*"aaaaa")
    wait_saved(browser)
    assert len(read_edits(reviewing.out).now) == 25
    reviewing.kill()
    browser.press(*"aaaaarrrrr")
    browser.wait(SAVED + ".includes('not saved yet: the review has ended')")
    for number in range(40, 55):
        correct(browser, number, f"W{number}")
    browser.console()  # it says that nobody answers
    reviewing.start()
    wait_saved(browser)
    browser.console()
    edits = read_edits(reviewing.out)
    assert len(edits.done) == len(edits.now) == 50
    assert "45 accepted · 5 rejected · 35 corrected" in browser.run(COUNTS)
    browser.press("u", "u")
    wait_saved(browser)
    browser.wait(WORDS + "[54].startsWith('A small ring')")
    assert len(read_edits(reviewing.out).done) == 48
    browser.press("U")
    browser.wait(WORDS + "[53] === 'W53'")
    replace(browser, reviewing)
    shown(browser, reviewing)
    assert browser.run(WORDS)[:2] == ["W0", "W1"], "what was done is there when it is opened again"
    last = reviewing.kill(signal.SIGINT)
    assert "corrected" in last and str(reviewing.out / "edits.jsonl") in last


def replace(browser: Browser, reviewing: Reviewing) -> None:
    """Replace in all that a search finds, take it back, and do it again."""
    corrected = {*range(20), *range(40, 54)}
    every = ((number, n) for number in range(VIDEOS) for n in range(CHUNKS))
    sought = [one for one in every if CHUNKS * one[0] + one[1] not in corrected]
    count = sum("7" in f"{number} {n}" for number, n in sought)
    browser.type("#search", "place 7 small")
    browser.wait(
        f"return document.querySelector('#shown').textContent.includes('{count:,} captions')"
    )
    browser.run("document.activeElement.blur()")
    browser.press("h")
    browser.run("document.querySelector('#regex').click()")
    browser.type("#find", r"of (\d+) moves")
    browser.type("#by", "number $1 goes")
    told = "return document.querySelector('#found').textContent"
    browser.wait(f"{told}.startsWith('{count:,} captions of {count:,}')")
    browser.press(ENTER)
    browser.wait(WORDS + ".every(text => text.includes('goes'))")
    wait_saved(browser)
    before = {key: edit.caption for key, edit in read_edits(reviewing.out).now.items()}
    assert sum("goes to place" in str(text) for text in before.values()) == count
    browser.run("document.querySelector('#undo').click()")
    browser.wait(WORDS + ".every(text => text.includes('moves'))")
    browser.run("document.querySelector('#redo').click()")
    browser.wait(WORDS + ".every(text => text.includes('goes'))")
    wait_saved(browser)
    after = {key: edit.caption for key, edit in read_edits(reviewing.out).now.items()}
    assert after == before


def test_a_tab_closed_too_early_saves_when_opened(browser: Browser, reviewing: Reviewing) -> None:
    shown(browser, reviewing)
    reviewing.kill()
    correct(browser, 3, "mine")
    browser.wait(SAVED + ".includes('not saved yet')")
    browser.run("window.stop()")
    browser.console()
    reviewing.start()
    browser.open("about:blank")
    shown(browser, reviewing)
    wait_saved(browser)
    assert [edit.caption for edit in read_edits(reviewing.out).now.values()] == ["mine"]


def test_what_is_asked_for_is_shown_in_order(browser: Browser, reviewing: Reviewing) -> None:
    shown(browser, reviewing)
    correct(browser, 12, "the longest caption of them all, by a good deal of words")
    at(browser, 0)
    browser.press("r")
    for filter_, count in (("accepted", 1), ("rejected", 1), ("open", 2998), ("corrected", 1)):
        choose(browser, "filter", filter_)
        assert browser.run("return page.flat.length") == count, filter_
    choose(browser, "filter", "failed")
    assert browser.run("return document.querySelector('.failure h2').textContent") == "gone.mp4"
    choose(browser, "filter", "all")
    choose(browser, "sort", "longest")
    assert "the longest caption" in browser.run(WORDS)[2]
    choose(browser, "sort", "name")
    names = "return [...document.querySelectorAll('#list .card h2')].map(e => e.textContent)"
    assert browser.run(names)[:3] == ["0.mp4", "1.mp4", "2.mp4"]


def test_videos_go_there_and_pictures_are_read_late(browser: Browser, reviewing: Reviewing) -> None:
    shown(browser, reviewing)
    loaded = "return [...document.images].filter(i => i.complete && i.naturalWidth).length"
    browser.wait(loaded)
    assert browser.run(loaded) < 60, "the others are further down"
    browser.run("document.querySelectorAll('.row .time')[4].click()")
    browser.wait("return document.querySelector('video')?.currentTime >= 4.8")
    assert browser.console() == []


def test_every_control_is_reached_by_the_tab_key(browser: Browser, reviewing: Reviewing) -> None:
    shown(browser, reviewing)
    browser.run("page.data.media.length = 1; page.show(); document.activeElement.blur()")
    wanted = browser.run(
        "return [...document.querySelectorAll('button, input, select')]"
        ".filter(e => e.checkVisibility() && !e.disabled).length"
    )
    reached = set()
    for _ in range(wanted + 3):
        browser.press(TAB)
        reached.add(
            browser.run(
                "const e = document.activeElement; e.dataset.at ||= Math.random();"
                "return e.matches('button, input, select') ? e.dataset.at : ''"
            )
        )
    assert len(reached - {""}) == wanted


def test_both_views_can_be_read_and_all_has_a_name(browser: Browser, reviewing: Reviewing) -> None:
    shown(browser, reviewing)
    correct(browser, 0, "mine")
    at(browser, 1)
    browser.press("a", "r", "h")
    browser.type("#find", "ring")
    wait_saved(browser)
    for view in ("grid", "list"):
        choose(browser, "view", view)
        browser.run(
            "const cards = [...document.querySelectorAll('.card')];"
            "cards.splice(11).forEach(card => card.remove());"
            "cards.forEach(card => { card.style.contentVisibility = 'visible' });"
        )
        every_look(browser)
