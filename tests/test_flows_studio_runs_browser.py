"""What the page of a studio shows of runs, and which runs it starts, in a real browser."""

import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
from PIL import Image

import penstock_demo
from tests.support.browser import Browser
from tests.support.endpoint import StandIn, running
from tests.support.media import write_video
from tests.support.reports import media_file, said, write_run
from tests.support.studio_page import COUNTS, ENTER, LONG, SAVED, WORDS, every_look, shown
from tests.support.studios import OpenStudio, all_done

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def test_a_run_shows_its_memory_and_why_it_ended(browser: Browser, studio: OpenStudio) -> None:
    for clip in sorted(penstock_demo.CLIPS.glob("*.mp4"))[:4]:
        shutil.copy(clip, studio.folder)
    values = {"sources": [str(studio.folder)], "model": "demo", "chunk": 0.2, "frames": 2}
    studio.done("runs", {"values": values})
    shown(browser, studio.address)
    browser.wait("return document.querySelector('#runs meter')", seconds=LONG)
    told = "return document.querySelector('#runs .stages').parentElement.innerText"
    running = browser.run(told)
    assert re.search(r"memory \S+ \SB now, peak \S+ \SB, planned \S+ \SB, budget \S+ \SB", running)
    assert "0 of 4 files failed" in running and "written" not in running
    (run,) = studio.runs()
    os.kill(run["pid"], signal.SIGKILL)
    shown(browser, f"{studio.address}run/{run['run']}/")
    card = "return document.querySelector('#running').innerText"
    browser.wait(f"{card}.includes('its process was killed')", seconds=LONG)
    assert browser.run(card).startswith("died ")
    every_look(browser)
    browser.run("document.querySelector('[data-act$=\"go on\"]').click()")
    browser.wait(f"{card} === ''", seconds=LONG)  # its captions show that it is done
    shown(browser, studio.address)
    count = studio.runs()[0]["status"]["captions"]
    assert f"{count} captions written, 0 of 4 files failed" in browser.run(told)


def test_files_are_sifted_and_a_model_is_chosen_tuned_and_exported(
    browser: Browser, studio: OpenStudio
) -> None:
    for clip in sorted(penstock_demo.CLIPS.glob("*.mp4"))[:4]:
        shutil.copy(clip, studio.folder)
    shown(browser, studio.address)
    browser.run("document.querySelector('#where button').click()")
    browser.type("#memory", "4GiB")
    browser.run("document.querySelector('#which').click()")
    fitting = "return document.querySelector('#fitting').innerText"
    browser.wait(f"{fitting}.includes('recommended: the largest that fits')", seconds=LONG)
    browser.run("document.querySelector('#model').value = ''")
    browser.run("document.querySelector('#fitting button').click()")
    assert browser.run("return document.querySelector('#model').value") == "demo"
    browser.run("document.querySelector('#sift').closest('details').open = true")
    browser.type("#sift", "blurred = 0")
    browser.run("document.querySelector('#sift-now').click()")
    runs = "return document.querySelector('#runs').innerText"
    browser.wait(f"{runs}.includes('4 of 4 files kept')", seconds=LONG)
    studio.done("runs", {"values": browser.run("return page.start.values()")})
    studio.wait(all_done)
    shown(browser, f"{studio.address}run/{studio.get('start')['own']}/")
    for kind, told in (("", "adapter in"), ("int8", "of captions the same")):
        browser.run("document.querySelector('#following').hidden = true")
        browser.run("document.querySelector('#follow').click()")
        browser.run(
            "const to = document.querySelector('#follow-to'); to.value = arguments[0];"
            "to.dispatchEvent(new Event('change'))",
            kind,
        )
        browser.run("document.querySelector('#following button').click()")
        browser.wait(
            f"return document.querySelector('#running').innerText.includes('{told}')",
            seconds=2 * LONG,
        )
    every_look(browser)
    found = studio.get("start")
    assert str(studio.out / "adapters/tuned") in found["adapters"]
    assert str(studio.out / "exports/int8") in found["models"]


def test_a_listed_server_captions_and_the_page_sends_no_address(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "media").mkdir()
    Image.new("RGB", (64, 48), (200, 30, 30)).save(tmp_path / "media/a.png")
    with running(StandIn()) as address:
        monkeypatch.setenv("PENSTOCK_ENDPOINTS", f"http://127.0.0.1:9/v1 {address}")
        studio = OpenStudio(tmp_path / "media", tmp_path / "out", tmp_path / "store").start()
        shown(browser, studio.address)
        browser.run("document.querySelector('#where button').click()")
        browser.run("document.querySelector('#model').value = ''")
        browser.type("#model", "openai:any")
        browser.run("document.querySelector('#server').value = '1'")
        assert address not in json.dumps(browser.run("return page.start.values()"))
        every_look(browser)
        browser.run("document.querySelector('#plan').click()")
        told = "return document.querySelector('#planned').innerText"
        browser.wait(told + ".includes('It fits.')", seconds=LONG)
        browser.run("document.querySelector('#go').click()")
        browser.wait(f"{COUNTS}.startsWith('1 caption')", seconds=LONG)
        assert browser.run(WORDS)[0].startswith("caption ")
        studio.wait(all_done)
        assert studio.end() == 0


def test_an_expression_that_never_ends_stops_nothing(
    browser: Browser, tmp_path: Path, studio: OpenStudio
) -> None:
    file = media_file(write_video(tmp_path / "empty" / "a.mp4", ticks=range(0, 60, 6)))
    write_run(studio.out, [(file, said(file, ["a" * 40 + "!", "A $1 ring."]))])
    shown(browser, f"{studio.address}run/{studio.get('start')['own']}/")
    browser.press("h")
    browser.run("document.querySelector('#regex').click()")
    browser.type("#find", "(a+)+$")
    told = "return document.querySelector('#found').textContent"
    browser.wait(f"{told}.startsWith('no result in 2 seconds')", seconds=10.0)
    assert browser.run("return document.querySelector('#replace-all').disabled")
    for find, by, regex, after in (
        ("(", "", True, None),
        (r"(\w)\w+\.", "$1og.", True, "A $1 rog."),
        ("$1", "$&", False, "A $& rog."),
    ):
        browser.run("document.querySelector('#regex').checked = arguments[0]", regex)
        for name, value in (("#find", find), ("#by", by)):
            browser.run("document.querySelector(arguments[0]).value = ''", name)
            browser.type(name, value)
        if after is None:
            browser.wait(f"{told}.startsWith('not a regular expression: Unterminated group')")
            continue
        browser.wait(f"{told}.startsWith('1 caption of 2')")
        browser.press(ENTER)
        browser.wait(f"{WORDS}[1] === '{after}'")
    browser.wait(SAVED)
    assert browser.console() == []
