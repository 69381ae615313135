"""The studio in a real browser: from an empty folder to data sets for trainers, without a terminal
and by keyboard alone; what its page shows of runs and which it starts; and how it looks."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

import penstock_demo
from artifacts.texts.edits import read_edits
from tests.support.browser import DIRECT, Browser
from tests.support.builders.endpoint import StandIn, running
from tests.support.builders.planted import drawn
from tests.support.looks import axe_script, serious
from tests.support.media import write_video
from tests.support.pipeline import ROOT, read_lines
from tests.support.reports import captions_of, media_file, write_run
from tests.support.studio_page import (
    COUNTS,
    ENTER,
    LONG,
    READY,
    SAVED,
    SPACE,
    TAB,
    WORDS,
    every_look,
    shown,
)
from tests.support.studios import OpenStudio, all_done
from tests.support.trainers import READERS

pytestmark = [pytest.mark.browser, pytest.mark.slow]

PICTURES = 18
TEXT_OF = ("innerText", "textContent")
"""The text of an element that is seen, and all of it."""


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Thirty clips and pictures."""
    folder = tmp_path_factory.mktemp("media") / "pictures"
    command = [sys.executable, "-m", "penstock_demo.dual.pictures", str(folder), "--kind"]
    command += ["several", "--count", str(PICTURES), "--seed", "5"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    found = [*sorted(penstock_demo.CLIPS.glob("*.mp4")), *sorted(folder.glob("*.jpg"))]
    assert len(found) == 30
    return found


def show_captions(browser: Browser, studio: OpenStudio, *texts: str) -> str:
    """Show a run of one video with a caption for each text."""
    file = media_file(write_video(studio.folder / "a.mp4", ticks=range(0, 60, 6)))
    write_run(studio.out, [(file, captions_of(file, texts))])
    run = str(studio.get("start")["own"])
    shown(browser, f"{studio.address}run/{run}/")
    return run


class WithoutRanges(BaseHTTPRequestHandler):
    """A proxy that passes on whole files alone."""

    port = 0

    def do_GET(self) -> None:
        address = f"http://127.0.0.1:{self.port}{self.path}"
        with DIRECT.open(address, timeout=60) as answer:
            body = answer.read()
            self.send_response(answer.status)
            for name in ("Content-Type", "Content-Security-Policy"):
                if value := answer.headers[name]:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with contextlib.suppress(ConnectionError):
                self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


def test_a_video_plays_from_its_chunk_on_through_a_proxy_without_ranges(
    browser: Browser, studio: OpenStudio
) -> None:
    file = media_file(Path(shutil.copy(penstock_demo.CLIPS / "clip-01.mp4", studio.folder)))
    write_run(studio.out, [(file, captions_of(file, ("First.", "Second.")))])
    run = str(studio.get("start")["own"])
    handler = type("Handler", (WithoutRanges,), {"port": studio.port})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        shown(browser, f"http://127.0.0.1:{server.server_port}/{studio.token}/run/{run}/")
        browser.click(".row .time", 1)
        video = "const video = document.querySelector('video'); "
        browser.wait(f"{video}return video && video.readyState > 1 && video.currentTime >= 2")
        assert not browser.console()
        server.shutdown()


def to(browser: Browser, selector: str) -> None:
    """Go to an element by the Tab key."""
    for _ in range(200):
        if browser.run("return document.activeElement.matches(arguments[0])", selector):
            return
        browser.press(TAB)
    raise AssertionError(f"Tab never reaches {selector}")


def test_from_an_empty_folder_to_data_sets_by_keyboard(
    browser: Browser, studio: OpenStudio, media: list[Path]
) -> None:
    shown(browser, studio.address)
    every_look(browser)
    # What a file dialogue would give; the rest is done by keys.
    browser.type("#dropped", "\n".join(map(str, media)))
    browser.wait("return document.querySelector('#uploading').textContent === '30 files uploaded'")
    to(browser, "#model")
    browser.press(*"demo")
    to(browser, "#plan")
    browser.press(ENTER)
    message = "return document.querySelector('#planned').innerText"
    browser.wait(message + ".includes('It fits.')", seconds=LONG)
    assert "30 files" in browser.run(message)
    line = browser.run("return document.querySelector('#line').textContent")
    assert line.startswith("penstock caption ") and "--model=demo" in line
    every_look(browser)
    to(browser, "#go")
    browser.press(ENTER)
    browser.wait("return location.pathname.includes('/run/')")
    browser.wait(READY)
    browser.wait(f"{COUNTS}.startsWith('30 captions')", seconds=LONG)
    studio.wait(all_done)
    shown(browser, f"{studio.address}run/{studio.get('start')['own']}/")  # from the first one on
    correct_three(browser, studio)
    ask_again(browser, studio)
    write(browser, studio, media)
    every_look(browser)
    shown(browser, studio.address)
    values = browser.run("return page.start.values()")
    assert values["model"] == "demo" and values["sources"] == [str(studio.out / "uploads")]
    browser.run("document.querySelector('#prompt').value = 'Another?'")
    browser.run("page.start.plan()")
    note = "1 rejection and 4 corrections in edits.jsonl belong to another prompt"
    browser.wait(f"{message}.includes('{note}')", seconds=LONG)


def correct_three(browser: Browser, studio: OpenStudio) -> None:
    """The first caption has the keys without a click."""
    browser.wait("return document.activeElement.matches('.row')")
    for number in range(3):
        browser.press("e")
        browser.wait("return document.activeElement.matches('textarea')")
        browser.run("document.activeElement.value = ''")
        browser.press(*f"Corrected {number}.", ENTER)
        browser.press("j")
    browser.run("document.activeElement.blur()")  # as a click on an empty place does
    browser.press("r")
    browser.wait(SAVED)
    texts = [e.caption for e in read_edits(studio.out).now.values()]
    assert texts == [*(f"Corrected {n}." for n in range(3)), None]


def ask_again(browser: Browser, studio: OpenStudio) -> None:
    """Ask about the current caption and one more, and use an answer."""
    browser.press("x", "j", "x", "n")
    browser.wait("return document.activeElement.matches('#again-prompt')")
    assert "2 captions" in browser.run("return document.querySelector('#again-told').textContent")
    browser.press(*"What moves?", TAB, *"2")
    to(browser, "#again button.main")
    browser.press(ENTER)
    browser.wait("return document.querySelectorAll('.other .acts').length === 2", seconds=LONG)
    browser.wait("return document.querySelector('#again-told').textContent === '2 answers, below'")
    # The other answer may be the same.
    use = "[...document.querySelectorAll('.other')].find(o => o.querySelector('p[dir]'))"
    take = "use.closest('.row').focus(); return use.children[1].textContent"
    other = browser.run(f"const use = {use}; {take}")
    browser.press("c")
    browser.wait(SAVED)
    assert [*read_edits(studio.out).now.values()][-1].caption == other
    studio.wait(all_done)


def write(browser: Browser, studio: OpenStudio, media: list[Path]) -> None:
    browser.press("w")
    browser.wait("return document.querySelector('[name=format][value=kohya]')")
    to(browser, "[name=format][value=kohya]")
    browser.press(SPACE)
    browser.type("[name=trainer]", "musubi:wan")
    to(browser, "#writing [type=submit]")
    browser.press(ENTER)
    browser.wait("return document.querySelectorAll('#writing tbody tr').length === 2", seconds=LONG)
    cells = "[...document.querySelectorAll('#writing tr')].map(e => e.innerText.split('\\t'))"
    messages = {row[0]: row[1:5] for row in browser.run(f"return {cells}")[1:]}
    assert messages["musubi"] == ["29", "29", "0", "0"] and messages["kohya"][2:] == ["0", "0"]
    assert messages["kohya"][1] == "29; 11 videos (it reads no videos)"
    found = {name: READERS[name](studio.out) for name in ("kohya", "musubi")}
    assert len(found["musubi"]) == 29, "30 but for the rejected one"
    assert len(found["kohya"]) == PICTURES, "kohya takes pictures"
    assert "max_frames = 81" in (studio.out / "musubi" / "dataset.toml").read_text()
    assert {f"Corrected {n}." for n in range(3)} <= {*found["musubi"].values()}


def test_an_edit_of_another_tab_is_shown_and_a_conflict_keeps_the_other_changes_of_its_deed(
    browser: Browser, studio: OpenStudio
) -> None:
    run = show_captions(browser, studio, "A ring.", "A square.", "A star.")
    rows = studio.get(f"run/{run}/captions")["media"][0]["captions"]
    keys = [row["key"] for row in rows]

    def of_another_tab(number: int, text: str, was: str | None) -> None:
        change = {"of": keys[number], "caption": text, "review": ""}
        change |= {"was": {"caption": was, "review": ""}}
        studio.done(f"run/{run}/edits", {"id": text, "does": "x", "changes": [change]})

    of_another_tab(1, "Seen.", None)
    browser.wait(WORDS + ".includes('Seen.')", seconds=2.0)
    studio.end(signal.SIGKILL)
    time.sleep(2)  # the page asks meanwhile, and goes on when there is an answer
    studio.start()
    of_another_tab(2, "Later.", None)
    browser.wait(WORDS + ".includes('Later.')", seconds=LONG)
    # An editor that is open keeps the text that it started from.
    browser.run("document.querySelector('.row').row.write()")
    of_another_tab(0, "Theirs.", None)
    browser.wait("return document.querySelector('.row .warning')?.innerText.includes('Theirs.')")
    browser.run("document.activeElement.value = 'Mine.'")
    browser.press(ENTER)
    browser.wait("return document.querySelector('#conflict').open")
    both = browser.run("return document.querySelector('#conflict').innerText")
    assert "Mine." in both and "Theirs." in both
    assert read_edits(studio.out).now[keys[0]].caption == "Theirs."
    browser.run("document.querySelector('#conflict').close()")
    # The other captions of a deed are changed whatever is answered.
    browser.run("page.polling = page.load; page.load = async () => {}")
    of_another_tab(1, "A SQUARE.", "Seen.")
    of_another_tab(2, "A STAR.", "Later.")
    browser.run("""page.save('replace', page.rows().map(row =>
        [row, {caption: words(row) + ' New.', review: ''}])); page.load = page.polling""")
    for answer in (-1, -2):  # use mine, then keep that
        browser.wait("return document.querySelector('#conflict').open")
        buttons = "[...document.querySelectorAll('#conflict button')]"
        browser.run(f"{buttons}.at(arguments[0]).click()", answer)
        time.sleep(0.1)
    browser.wait(SAVED)
    found = read_edits(studio.out).now
    assert [found[key].caption for key in keys] == ["Theirs. New.", "Seen. New.", "A STAR."]
    assert any("409" in line for line in browser.console())


def test_axe_finds_nothing_serious(browser: Browser, tmp_path: Path, studio: OpenStudio) -> None:
    script = axe_script(tmp_path)
    run = show_captions(browser, studio, "red, ring", "blue, square")
    shown(browser, studio.address)
    browser.run("document.querySelectorAll('details').forEach(one => { one.open = true })")
    browser.wait("return document.querySelector('#folders button')")
    for address in (studio.address, f"{studio.address}run/{run}/"):
        if address != studio.address:
            shown(browser, address)
            browser.press("x", "n")
            opened = "for (const one of [page.tags, page.replacing, page.writing, page.following])"
            browser.run(f"{opened} one.toggle()")
            browser.wait("return document.querySelector('#writing table, #writing .quiet')")
        for theme in ("light", "dark"):
            browser.run("document.documentElement.dataset.theme = arguments[0]", theme)
            assert serious(browser, script) == [], (address, theme)
    for opening in ("page.help()", "page.past()"):
        browser.run(opening)
        browser.wait("return document.querySelector('dialog[open]')")
        assert serious(browser, script) == [], opening
        browser.run("document.querySelector('dialog[open]').close()")


def test_every_option_of_the_command_has_a_field(browser: Browser, studio: OpenStudio) -> None:
    shown(browser, studio.address)
    browser.run("document.querySelector('#every').open = true")
    names = {option["flag"] for option in studio.get("start")["options"]}
    message = browser.run("return document.querySelector('#options').textContent")
    absent = {name for name in names - {"--sources"} if f"{name}:" not in message}
    own = "model adapter memory prompt schema trigger sift out recursive prompts format"
    assert absent == {f"--{name}" for name in own.split()}
    every_look(browser)
    assert json.dumps(studio.get("start")).count("trust") == 0


def test_a_run_shows_its_memory_and_why_it_ended(browser: Browser, studio: OpenStudio) -> None:
    for clip in sorted(penstock_demo.CLIPS.glob("*.mp4")):
        shutil.copy(clip, studio.folder)
    values = {"sources": [str(studio.folder)], "model": "demo", "chunk": 0.1, "frames": 2}
    studio.done("runs", {"values": values})
    shown(browser, studio.address)
    browser.wait("return document.querySelector('#runs meter')", seconds=LONG)
    browser.wait("return document.querySelector('#runs .latest')?.naturalWidth", seconds=LONG)
    message = "return document.querySelector('#runs .run').innerText"
    running = browser.run(message)
    assert re.search(r"memory \S+ \SB now, peak \S+ \SB, planned \S+ \SB, budget \S+ \SB", running)
    assert "12 files" in running and "failed" not in running and "written" not in running
    browser.run("page.stop = document.querySelector('[data-act$=stop]')")
    browser.wait(f"{message} !== arguments[0]", running)
    assert browser.run("return page.stop.isConnected"), "a click on it would be lost"
    (run,) = studio.runs()
    os.kill(run["pid"], signal.SIGKILL)
    shown(browser, f"{studio.address}run/{run['run']}/")
    card, text = (f"return document.querySelector('#running').{n}" for n in TEXT_OF)
    browser.wait(f"{card}.includes('its process was killed')", seconds=LONG)
    assert browser.run(card).startswith("died ")
    every_look(browser)
    browser.run("document.querySelector('[data-act$=\"go on\"]').click()")
    browser.wait(f"{card}.startsWith('done ')", seconds=LONG)
    browser.wait(f"{card}.includes('Review the captions')")
    assert "penstock index build --store=" in browser.run(text)
    every_look(browser)
    shown(browser, studio.address)
    count = studio.runs()[0]["status"]["captions"]
    assert f"{count} captions written, 0 of 12 files failed" in browser.run(message)


def test_files_are_sifted_and_a_model_is_chosen_tuned_and_exported(
    browser: Browser, studio: OpenStudio
) -> None:
    clips = sorted(penstock_demo.CLIPS.glob("*.mp4"))[:3]
    for clip in clips:
        shutil.copy(clip, studio.folder)
    shutil.copy(clips[0], studio.folder / "copy.mp4")
    shown(browser, studio.address)
    browser.type("#memory", "4GiB")
    browser.run("document.querySelector('#which').click()")
    fitting = "return document.querySelector('#fitting').innerText"
    browser.wait(f"{fitting}.includes('knows drawn moving shapes alone')", seconds=LONG)
    assert "recommended" not in browser.run(fitting), "demo captions no photos"
    browser.run("document.querySelector('#fitting button').click()")
    assert browser.run("return document.querySelector('#model').value") == "demo"
    browser.run("document.querySelector('#sift').closest('details').open = true")
    browser.type("#sift", "duplicates = 0")
    told = "return document.querySelector('#sift-told').textContent"
    for act in ("#plan", "#sift-now"):
        browser.run("document.querySelector(arguments[0]).click()", act)
        browser.wait(f"{told}.includes('did you mean duplicate?')", seconds=LONG)
        browser.run("page.start.changed()")
    browser.run("document.querySelector('#sift').value = ''")
    browser.type("#sift", "blurred = 0")
    browser.run("document.querySelector('#sift-now').click()")
    runs = "return document.querySelector('#runs').innerText"
    browser.wait(f"{runs}.includes('4 of 4 files kept')", seconds=LONG)
    pictures = "return [...document.querySelectorAll('#runs .copies img')].map(i => i.naturalWidth)"
    browser.wait(f"{pictures}.length === 2 && {pictures[7:]}.every(Boolean)", seconds=LONG)
    studio.done("runs", {"values": browser.run("return page.start.values()")})
    studio.wait(all_done)
    shown(browser, f"{studio.address}run/{studio.get('start')['own']}/")
    for kind, message in (("", "adapter in"), ("int8", "of captions the same")):
        browser.run("document.querySelector('#following').hidden = true")
        browser.run("document.querySelector('#follow').click()")
        follow = "const to = document.querySelector('#follow-to'); to.value = arguments[0];"
        browser.run(f"{follow} to.dispatchEvent(new Event('change'))", kind)
        browser.run("document.querySelector('#following button').click()")
        said = "return document.querySelector('#running').innerText"
        browser.wait(f"{said}.includes('{message}')", seconds=2 * LONG)
    every_look(browser)
    found = studio.get("start")
    assert str(studio.out / "adapters/tuned") in found["adapters"]
    assert str(studio.out / "exports/int8") in found["models"]


def test_a_person_chooses_the_best_copy_and_takes_back_what_was_left_out(
    browser: Browser, studio: OpenStudio
) -> None:
    scenes = drawn(np.random.default_rng(8))
    one, other = (next(scenes).resize((640, 400)) for _ in range(2))
    one.save(studio.folder / "one.png")
    one.save(studio.folder / "one copy.jpg", quality=80)
    other.filter(ImageFilter.GaussianBlur(12)).save(studio.folder / "soft.png")
    shown(browser, studio.address)
    browser.run("document.querySelector('#sift').closest('details').open = true")
    browser.type("#model", "demo")
    browser.type("#sift", "duplicate = 0 and blurred = 0")
    browser.run("document.querySelector('#sift-now').click()")
    runs = "return document.querySelector('#runs').innerText"

    def click(label: str) -> None:
        name = f"[...document.querySelectorAll('#runs button')].find(b => b.matches('{label}'))"
        assert browser.wait(f"return Boolean({name})", seconds=LONG), label
        browser.run(f"{name}.click()")

    browser.wait(f"{runs}.includes('1 of 3 files kept')", seconds=LONG)
    assert [row["media_path"] for row in read_lines(studio.out / "sift/kept.jsonl")] == ["one.png"]
    click('[aria-label="Choose as best: one copy.jpg"]')
    browser.wait(f"{runs}.includes('chosen as the best')")
    click('[aria-label="Take back: soft.png"]')
    browser.wait(f"{runs}.includes('taken back')")
    every_look(browser)
    click('[data-act$="go on"]')
    browser.wait(f"{runs}.includes('2 of 3 files kept')", seconds=LONG)
    kept = [row["media_path"] for row in read_lines(studio.out / "sift/kept.jsonl")]
    assert kept == ["one copy.jpg", "soft.png"]
    click('[aria-label="Undo: one copy.jpg"]')
    browser.wait(f"{runs.replace('return ', 'return !')}.includes('chosen as the best')")
    click('[aria-label="Choose as best: one.png"]')
    browser.wait(f"{runs}.includes('chosen as the best')")
    click('[data-act$="go on"]')
    browser.wait(f"{runs}.includes('a copy of one.png')", seconds=LONG)
    every_look(browser)


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
        message = "return document.querySelector('#planned').innerText"
        browser.wait(message + ".includes('It fits.')", seconds=LONG)
        browser.run("document.querySelector('#go').click()")
        browser.wait(f"{COUNTS}.startsWith('1 caption')", seconds=LONG)
        assert browser.run(WORDS)[0].startswith("caption ")
        studio.wait(all_done)
        assert studio.end() == 0


def test_a_folder_of_50_000_files_is_shown_at_once_and_scrolled_to_its_end(
    browser: Browser, studio: OpenStudio
) -> None:
    below = studio.folder / "deep/er"
    below.mkdir(parents=True)
    Image.new("RGB", (64, 48), (200, 30, 30)).save(below / "red.png")
    for number in range(50_000):
        os.link(below / "red.png", studio.folder / f"picture-{number:05}.png")
    milliseconds = []
    for _ in range(3):
        shown(browser, studio.address)
        found = "document.querySelectorAll('#folders .tile img').length"
        browser.wait(f"return {found} > 20")
        mark = "performance.getEntriesByName('files shown')[0].startTime"
        milliseconds.append(browser.run(f"return {mark}"))
    assert min(milliseconds) < 1000, milliseconds
    elements = "return document.querySelectorAll('#folders *').length"
    seen = "[...document.querySelectorAll('#folders .called')].map(e => e.textContent)"
    assert browser.run(f"return {seen}")[:2] == ["deep/", "picture-00000.png"]
    browser.wait("return document.querySelector('#folders .folder').textContent === '1 file'")
    sources = browser.run("return document.querySelector('#sources').innerText")
    assert sources.startswith(str(studio.folder))
    counts = [browser.run(elements)]
    every_look(browser)
    for share in (0.5, 1):
        scroll = "const b = document.querySelector('#folders'); b.scrollTop ="
        browser.run(f"{scroll} arguments[0] * b.scrollHeight", share)
        number = 49_999 if share == 1 else 25_000
        browser.wait(f"return {seen}.includes('picture-{number:05}.png')")
        counts.append(browser.run(elements))
    assert max(counts) <= 200, counts
    browser.wait("return [...document.querySelectorAll('#folders img')].every(i => i.naturalWidth)")
    assert browser.console() == []


def test_an_expression_that_never_ends_stops_nothing(
    browser: Browser, tmp_path: Path, studio: OpenStudio
) -> None:
    show_captions(browser, studio, "a" * 40 + "!", "A $1 ring.")
    browser.press("h")
    browser.run("document.querySelector('#regex').click()")
    browser.type("#find", "(a+)+$")
    message = "return document.querySelector('#found').textContent"
    browser.wait(f"{message}.startsWith('no result in 2 seconds')", seconds=10.0)
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
            browser.wait(f"{message}.startsWith('not a regular expression: Unterminated group')")
            continue
        browser.wait(f"{message}.startsWith('1 caption of 2')")
        browser.press(ENTER)
        browser.wait(f"{WORDS}[1] === '{after}'")
    browser.wait(SAVED)
    assert browser.console() == []


PURPOSES = {
    "to train a person": ("pose", "trigger word"),
    "to train a style": ("medium", "trigger word"),
    "to train an object": ("background", "object"),
    "to train a motion": ("order of time", "one event"),
}
"""Prompt → what it asks about, or leaves out, and what the reason is about."""


def test_prompts_for_captions_to_train_on_say_why_and_a_file_replaces_one(
    browser: Browser, studio: OpenStudio
) -> None:
    told = "return document.querySelector('#prompts-told').textContent"
    choose = (
        "const one = document.querySelector('#preset'); one.value = arguments[0];"
        "one.dispatchEvent(new Event('change', {bubbles: true}));"
        "return document.querySelector('#prompt').value"
    )
    shown(browser, studio.address)
    folder = browser.run(told)
    assert folder.startswith("Prompts are files in ")
    for name, (asked, why) in PURPOSES.items():
        assert asked in browser.run(choose, name) and why in browser.run(told)
        assert browser.run(told).count(". ") == 0, "one sentence"
    every_look(browser)
    assert browser.run(choose, "tags").startswith("List") and browser.run(told) == folder
    file = Path(
        folder.removeprefix("Prompts are files in ").removesuffix("."), "to train a style.txt"
    )
    file.write_text("Mine?")
    shown(browser, studio.address)
    assert browser.run(choose, "to train a style") == "Mine?" and browser.run(told) == folder
    file.unlink()
