"""A review in a real browser: edits by keys, a server that is killed, how it looks, and learning
from corrections at the press of a button."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from PIL import Image

import penstock_demo
from artifacts.texts.captions import Failure
from artifacts.texts.edits import read_edits
from flows.core.job.plan_record import FixedWords
from flows.outputs.record.rounds import rounds_in
from penstock_demo.clips import write_clips
from tests.support import studio_page
from tests.support.browser import Browser, browsing
from tests.support.learning import decide_in
from tests.support.media import write_video
from tests.support.pipeline import PENSTOCK, ROOT, read_lines
from tests.support.reports import (
    PLAN,
    SEARCHES,
    TRIGGER,
    captions_of,
    mac_folder,
    media_file,
    write_run,
)
from tests.support.saying import Saying, run
from tests.support.stand_ins import config_in
from tests.support.studio_page import COUNTS, ENTER, ESCAPE, TAB, WORDS, every_look
from tests.support.trainers import kohya_bucket

pytestmark = [pytest.mark.browser, pytest.mark.slow]

VIDEOS, CHUNKS = 300, 10
SAVED = "return document.querySelector('#saved').textContent"
ADDRESS = re.compile(r"review at (http://127\.0\.0\.1:(\d+)/[0-9a-f]{32}/run/[0-9a-f]{16}/)\n")


@dataclass
class Reviewing:
    """A review that is going on, on one port whatever becomes of its server."""

    out: Path
    port: int = 0
    address: str = ""
    order: str = "source"
    more: tuple[str, ...] = ()
    process: subprocess.Popen[str] | None = field(default=None, repr=False)

    def start(self) -> None:
        options = ["--port", str(self.port), "--order", self.order, *self.more]
        command = [*PENSTOCK, "review", str(self.out), *options]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = ADDRESS.fullmatch(line)
        assert found, line
        assert self.address in ("", found[1]), "the page that is open would not find it"
        self.address, self.port = found[1], int(found[2])

    def kill(self, how: int = signal.SIGKILL) -> str:
        """End it; what it said last."""
        assert self.process is not None and self.process.stdout is not None
        self.process.send_signal(how)
        with self.process:
            return self.process.stdout.read()


def shown(browser: Browser, reviewing: Reviewing) -> None:
    studio_page.shown(browser, reviewing.address)
    assert browser.console() == []


def at(browser: Browser, number: int) -> None:
    """Go to a caption."""
    browser.run("document.querySelectorAll('.row')[arguments[0]].focus()", number)


def correct(browser: Browser, number: int, text: str) -> None:
    at(browser, number)
    browser.press("e")
    browser.run("document.activeElement.value = ''")
    browser.press(*text, ENTER)


def wait_saved(browser: Browser) -> None:
    browser.wait(f"{SAVED} === 'all saved'", seconds=60.0)


def choose(browser: Browser, name: str, value: str) -> None:
    chosen = "const one = document.getElementById(arguments[0]); one.value = arguments[1];"
    browser.run(f"{chosen} one.dispatchEvent(new Event('change'))", name, value)


@contextlib.contextmanager
def review_of(out: Path, order: str = "source", *more: str) -> Iterator[Reviewing]:
    """A review of the captions in a folder, until the block ends."""
    made = Reviewing(out, order=order, more=more)
    made.start()
    yield made
    if made.process is not None and made.process.poll() is None:
        made.kill()


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
        captioned.append((file, captions_of(file, texts, 1.2)))
    gone = dict.fromkeys(("media_path", "source", "stage", "error", "message", "hint"), "gone.mp4")
    write_run(tmp_path / "out", captioned, [Failure(**gone)])
    with review_of(tmp_path / "out") as made:
        yield made


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
    replace_all(browser, reviewing)
    shown(browser, reviewing)
    assert browser.run(WORDS)[:2] == ["W0", "W1"], "what was done is there when it is opened again"
    last = reviewing.kill(signal.SIGINT)
    assert "corrected" in last and str(reviewing.out / "edits.jsonl") in last


def replace_all(browser: Browser, reviewing: Reviewing) -> None:
    """Replace in all that a search finds, take it back, and do it again."""
    corrected = {*range(20), *range(40, 54)}
    every = ((number, n) for number in range(VIDEOS) for n in range(CHUNKS))
    sought = [one for one in every if CHUNKS * one[0] + one[1] not in corrected]
    count = sum("7" in f"{number} {n}" for number, n in sought)
    browser.type("#search", "place 7 small")
    shown_now = "return document.querySelector('#shown').textContent"
    browser.wait(f"{shown_now}.includes('{count:,} captions')")
    browser.run("document.activeElement.blur()")
    browser.press("h")
    browser.run("document.querySelector('#regex').click()")
    browser.type("#find", r"of (\d+) moves")
    browser.type("#by", "number $1 goes")
    message = "return document.querySelector('#found').textContent"
    browser.wait(f"{message}.startsWith('{count:,} captions of {count:,}')")
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
    expected = browser.run(
        "return [...document.querySelectorAll('button, input, select')]"
        ".filter(e => e.checkVisibility() && !e.disabled).length"
    )
    now = "const e = document.activeElement; e.dataset.at ||= Math.random();"
    reached = set()
    for _ in range(expected + 3):
        browser.press(TAB)
        found = browser.run(f"{now} return e.matches('button, input, select') ? e.dataset.at : ''")
        reached.add(found)
    assert len(reached - {""}) == expected


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


LONG_TEXT = " ".join(["a ginger tabby cat that sits on a wall"] * 6)
BOX = "const box = document.querySelector('.row textarea'); return "


@pytest.fixture
def fixed(tmp_path: Path) -> Iterator[Reviewing]:
    """A review of a long caption and a short one, around which a run puts other texts."""
    file = media_file(tmp_path / "a.mp4")
    words = FixedWords(prefix="photo of", suffix=", 4k", trigger="ohwx")
    captions = captions_of(file, [LONG_TEXT, "a dog"])
    write_run(tmp_path / "out", [(file, captions)], plan=replace(PLAN, words=words))
    with review_of(tmp_path / "out") as made:
        yield made


@pytest.mark.parametrize("wide", [1280, 400])
def test_the_box_is_as_high_as_its_text_and_stands_beside_what_is_fixed(
    browser: Browser, fixed: Reviewing, wide: int
) -> None:
    browser.narrow(wide)
    shown(browser, fixed)
    needs = "return document.querySelector('#learn-needs').textContent"
    few = "too few captions for Learn, which needs 40: see penstock tune"
    assert browser.run(needs) == few
    assert browser.run("return document.querySelector('#learn').disabled")
    at(browser, 0)
    browser.press("e")
    assert browser.run(BOX + "box.value") == LONG_TEXT
    texts = browser.run("return [...document.querySelectorAll('.fixed')].map(e => e.textContent)")
    assert [text.strip() for text in texts] == ["ohwx, photo of", ", 4k"]
    for text in (LONG_TEXT, "a cat", 3 * LONG_TEXT):
        browser.run("document.activeElement.value = arguments[0]", text)
        browser.press(" ")
        high = browser.run(BOX + "[box.scrollHeight, box.clientHeight]")
        assert high[0] <= high[1] and (high[1] < 80) == (text == "a cat"), high
    browser.press(ENTER)
    at(browser, 1)
    browser.press("r")
    wait_saved(browser)
    assert browser.run(needs) == few
    counts = "2 captions · 0 not decided · 1 accepted · 1 rejected · 1 corrected"
    assert browser.run(COUNTS) == counts
    last = fixed.kill(signal.SIGINT).splitlines()[-1]
    assert last.startswith("1 corrected, 1 accepted, 1 rejected of 2 captions in ")


def test_words_are_found_in_names_captions_and_the_trigger_and_a_replacement_is_no_decision(
    browser: Browser, tmp_path: Path
) -> None:
    plan = replace(PLAN, words=FixedWords(trigger=TRIGGER))
    write_run(tmp_path / "out", mac_folder(tmp_path / "photos"), plan=plan)
    with review_of(tmp_path / "out") as made:
        shown(browser, made)
        names = "[...document.querySelectorAll('#list h2')].map(e => e.firstChild.textContent)"
        for query, found in SEARCHES.items():
            browser.run("document.querySelector('#search').value = ''")
            browser.type("#search", query)
            browser.wait(f"return JSON.stringify({names}) === JSON.stringify(arguments[0])", found)
        browser.run("document.querySelector('#search').value = ''; page.show()")
        browser.run("document.querySelector('#replace').click()")
        browser.type("#find", "square")
        browser.type("#by", "box")
        browser.wait("return !document.querySelector('#replace-all').disabled")
        browser.click("#replace-all")
        wait_saved(browser)
        assert browser.run(COUNTS) == "3 captions · 3 not decided · 1 changed in bulk"
        choose(browser, "filter", "unread")
        assert browser.run(f"return {names}") == ["2.png"]
        browser.run("document.querySelector('.row').focus()")
        browser.press("a")
        wait_saved(browser)
        assert browser.run(COUNTS) == "3 captions · 2 not decided · 1 accepted · 1 corrected"
        choose(browser, "filter", "open")
        assert browser.run(f"return {names}") == ["1.png", "3.png"]
        every_look(browser)


CLIPS, CORRECTED = 60, 40
MARGINS = "return page.flat.map(({row}) => row.margin)"
SHOWN = "return page.flat.map(({row}) => words(row))"
LEARNED = "return document.querySelector('#learn-told').textContent"


def style(caption: str) -> str:
    """Rephrase a caption as a person with a style of their own does."""
    return f"seen here: {caption[0].lower()}{caption[1:].rstrip('.')}"


@pytest.mark.timeout(1800)
def test_what_was_corrected_is_learned_at_the_press_of_a_button(tmp_path: Path) -> None:
    write_clips(tmp_path / "clips", CLIPS, 5)
    where = ["--store", str(tmp_path / "store"), "--out", "out", "--frames", "4", "--quiet"]
    command = [*PENSTOCK, "caption", "clips", "--model", "demo", *where]
    here = {**os.environ, "PYTHONPATH": str(ROOT)}  # with the folder of state that review has
    subprocess.run(command, cwd=tmp_path, check=True, env=here)
    out = tmp_path / "out"
    decide_in(out, lambda at, texts: (style(texts), "accepted") if at < CORRECTED else None)
    before = [line["caption"] for line in read_lines(out / "captions.jsonl")]
    with review_of(out, "doubt") as made, browsing(tmp_path / "profile") as browser:
        shown(browser, made)
        margins = browser.run(MARGINS)
        assert len(margins) == CLIPS and margins == sorted(margins)
        check_doubtful_words(browser)
        choose(browser, "filter", "open")
        for _ in range(5):
            correct(browser, 0, style(browser.run(WORDS)[0]))
            wait_saved(browser)
            choose(browser, "filter", "open")
        browser.run("document.querySelector('#learn').click()")
        browser.wait(LEARNED + ".startsWith('penstock learn ')")
        message = browser.wait(f"{LEARNED}.startsWith('round 1') && {LEARNED[7:]}", seconds=900.0)
        (found,) = rounds_in(out)
        assert found.accepted and len(found.examples) + len(found.held_out) == 45
        assert "learned from 36 captions: loss per token" in message and "→" in message
        assert f"{found.changed} of {CLIPS} captions changed" in message
        choose(browser, "filter", "learned")
        changed = browser.run(SHOWN)
        assert len(changed) == found.changed > 0
        assert any(text.startswith("seen here:") for text in changed)
        assert browser.run("return document.querySelector('.before').textContent")
        assert [each for each in browser.console() if "SEVERE" in each] == []
        choose(browser, "filter", "all")
        correct(browser, 0, "Mine.")  # the journal is open again
        wait_saved(browser)
    now = read_lines(out / "captions.jsonl")
    assert [line["caption"] for line in now][:CORRECTED] == [*map(style, before[:CORRECTED])]
    assert sum(line["caption"].startswith("seen here:") for line in now) > 45


def check_doubtful_words(browser: Browser) -> None:
    """Check that the underlined word is that of the margin, in text that is not corrected."""
    found = browser.run(
        "return [...document.querySelectorAll('.row')].map(e => [e.row.row.said, e.row.row.margin,"
        "e.row.row.margin_at, e.querySelector('.doubtful')?.textContent ?? null,"
        "e.querySelector('.doubt').textContent, e.matches('.corrected')])"
    )
    marked = [row for row in found if row[3] is not None]
    assert marked and all(margin <= 1 for _, margin, *_ in marked)
    for text, margin, place, word, message, corrected in marked:
        assert not corrected and word in text[max(0, place - len(word)) : place + len(word) + 1]
        message, _, rounded = message.partition(", margin ")
        assert message == f"in doubt: “{word}”" and abs(float(rounded) - margin) < 0.006
    assert all(row[4] == "" for row in found if row[5] or row[1] > 1)


SIZES = {"square": (512, 512), "wide": (2048, 256), "high": (256, 1536)}
TITLES = "[...document.querySelectorAll('#list h2')].map(e => e.textContent)"
LOST = "[...document.querySelectorAll('.row .warning')].map(e => e.textContent)"
TOLD = "return document.querySelector('#seen-told').textContent"
PLACES = """
const place = arguments[0], [picture, over, part] = [' img', ' .crop', ' .trained']
  .map(one => document.querySelector(place + one).getBoundingClientRect());
return [picture.width, picture.height, over.width, over.height, part.width, part.height];
"""


def filter_trainer(browser: Browser, wanted: str, *names: str) -> None:
    """Type what a trainer loses, and wait until these media are shown."""
    browser.run("document.querySelector('#seen').value = ''")
    browser.type("#seen", wanted)
    browser.wait(f"return JSON.stringify({TITLES}) === JSON.stringify(arguments[0])", [*names])


def test_what_the_trainer_loses_is_found_said_and_drawn_on_the_picture(
    browser: Browser, tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    for name, size in SIZES.items():
        Image.linear_gradient("L").resize(size).save(tmp_path / "photos" / f"{name}.png")
    config = config_in(tmp_path, tmp_path / "photos", trainer=("kohya:sd1.5",), trigger=TRIGGER)
    run(config, Saying())
    clip = tmp_path / "tokenizers" / "clip"
    clip.mkdir(parents=True)
    shutil.copy(penstock_demo.CHECKPOINT / "tokenizer.json", clip)
    more = ("--tokenizers", str(clip.parent))
    with review_of(tmp_path / "out", "source", *more) as made:
        shown(browser, made)
        correct(browser, 0, "word " * 24 + "and the end")
        correct(browser, 1, "a box")
        wait_saved(browser)
        filter_trainer(browser, "tokens > 75", "high.png")
        cropped, tokens = browser.run(f"return {LOST}")
        assert tokens.startswith("tokens: ") and tokens.endswith("word and the end”")
        correct(browser, 0, "a hat")
        browser.wait(f"return JSON.stringify({LOST}) === JSON.stringify(arguments[0])", [cropped])
        filter_trainer(browser, "cropped > 20 %", "high.png", "wide.png")
        check_crop(browser, ".card:last-child .player", SIZES["wide"])
        browser.run("document.querySelector('.card:last-child .player > button').click()")
        browser.wait("return document.querySelector('#viewer img')?.naturalWidth")
        check_crop(browser, "#viewer", SIZES["wide"])
        browser.press(ESCAPE)
        filter_trainer(browser, "tokens or", "high.png", "wide.png")
        told = browser.wait(TOLD + ".startsWith('Trainer filter') && " + TOLD[7:])
        assert told.startswith("Trainer filter cannot be read at its end: a column")
        (logged,) = browser.console()
        assert "422" in logged, "the browser itself writes that a request was refused"
        filter_trainer(browser, "all", "high.png", "square.png", "wide.png")
        every_look(browser)
        browser.run("const one = document.querySelector('#seen'); one.value = '';"
                    "one.dispatchEvent(new Event('input'))")  # fmt: skip
        browser.wait("return !document.querySelector('.crop')")


def check_crop(browser: Browser, place: str, size: tuple[int, int]) -> None:
    """Check that the frame on a picture is what kohya's bucket keeps of it."""
    wide, high, over_wide, over_high, kept_wide, kept_high = browser.run(PLACES, place)
    bucket = kohya_bucket(*size, {"resolution": 512, "max_bucket_reso": 1024})
    shown = min(wide / size[0], high / size[1])
    scale = shown / max(bucket[0] / size[0], bucket[1] / size[1])
    assert (over_wide, over_high) == pytest.approx((wide, high), abs=0.1)
    expected = bucket[0] * scale, bucket[1] * scale
    assert (kept_wide, kept_high) == pytest.approx(expected, abs=1)


TAGGED = (
    "tall grass, dog, solo, sky",
    "sky, hound, dog, solo",
    "dog, bad quality, blurry",
    "10 trees, 2 trees, Sky",
)
TAG_CHANGES: list[tuple[str, dict[str, str], tuple[str, ...]]] = [
    ("common", {}, (  # dog is in three captions; sky and solo are in two, and stay as they are
        "dog, solo, sky, tall grass", "dog, sky, solo, hound", TAGGED[2], TAGGED[3],
    )),
    ("common", {"fixed-tags": "1"}, (TAGGED[0], "sky, dog, solo, hound", TAGGED[2], TAGGED[3])),
    (
        "names",
        {},
        (
            "dog, sky, solo, tall grass",
            "dog, hound, sky, solo",
            "bad quality, blurry, dog",
            "2 trees, 10 trees, Sky",
        ),
    ),
    (
        "front",
        {"find": "SKY, solo, sky"},
        (
            "sky, solo, tall grass, dog",
            "sky, solo, hound, dog",
            TAGGED[2],
            "Sky, 10 trees, 2 trees",
        ),
    ),
    ("front", {"find": "solo", "fixed-tags": "1"}, (
        "tall grass, solo, dog, sky", "sky, solo, hound, dog", TAGGED[2], TAGGED[3],
    )),
    ("merge", {"find": "hound, dog", "by": "puppy"}, (
        "tall grass, puppy, solo, sky", "sky, puppy, solo", "puppy, bad quality, blurry", TAGGED[3],
    )),
    ("remove", {"find": "blurry, bad quality, dog, dog"}, (
        "tall grass, solo, sky", "sky, hound, solo", TAGGED[2], TAGGED[3],
    )),
]  # fmt: skip
"""Change → what is typed, and the captions that it makes."""


def test_tags_are_put_in_order_merged_and_taken_away_with_a_preview_and_an_undo(
    browser: Browser, tmp_path: Path
) -> None:
    files = [media_file(tmp_path / f"{number}.png") for number in range(len(TAGGED))]
    captioned = [
        (file, captions_of(file, [text])) for file, text in zip(files, TAGGED, strict=True)
    ]
    write_run(tmp_path / "out", captioned)
    expression = "[...document.querySelectorAll('#preview ins')].map(e => e.textContent)"
    with review_of(tmp_path / "out") as made:
        shown(browser, made)
        browser.press("h")
        for how, typed, expected in TAG_CHANGES:
            fill_in(browser, how, typed)
            changed = [text for text, old in zip(expected, TAGGED, strict=True) if text != old]
            wanted = f"return JSON.stringify({expression}) === JSON.stringify(arguments[0])"
            browser.wait(wanted, changed)
            if how == "remove":
                told = browser.run("return document.querySelector('#found').textContent")
                assert told.endswith("1 caption would be empty, which stays as it is")
                every_look(browser)
            browser.click("#replace-all")
            browser.wait(
                f"return JSON.stringify({WORDS[7:]}) === JSON.stringify(arguments[0])", expected
            )
            wait_saved(browser)
            assert len(read_edits(made.out).done[-1].changes) == len(changed)
            browser.click("#undo")
            browser.wait(
                f"return JSON.stringify({WORDS[7:]}) === JSON.stringify(arguments[0])", TAGGED
            )
            wait_saved(browser)
        fill_in(browser, "merge", {"find": "dog", "by": "a, b"})
        browser.wait(
            "return document.querySelector('#found').textContent.startsWith('give one tag')"
        )
        assert browser.run("return document.querySelector('#replace-all').disabled")


def fill_in(browser: Browser, how: str, typed: dict[str, str]) -> None:
    """Choose a change in the form of Replace…, and what it is given."""
    browser.run(
        "document.querySelector('#how').value = arguments[0];"
        "for (const name of ['find', 'by', 'fixed-tags']) {"
        "  const field = document.getElementById(name);"
        "  field.value = arguments[1][name] ?? (name === 'fixed-tags' ? '0' : '');"
        "}"
        "document.querySelector('#how').dispatchEvent(new Event('input', {bubbles: true}))",
        how,
        typed,
    )


def test_texts_of_a_folder_are_corrected_and_written_but_not_over_another_s(
    browser: Browser, tmp_path: Path
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, text in enumerate(TAGGED[:3]):
        Image.new("RGB", (64 + number, 48)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(text)
    with review_of(folder, "source", "--out", str(tmp_path / "out")) as made:
        shown(browser, made)
        assert browser.run(WORDS) == [*TAGGED[:3]]
        for number in (0, 1):
            correct(browser, number, f"mine, {number}")
        wait_saved(browser)
        (folder / "1.txt").write_text("of somebody else")
        browser.run("document.activeElement.blur()")
        browser.press("w")
        browser.wait("return document.querySelector('#writing button')")
        browser.click("#writing button")
        told = "return document.querySelector('#writing [role=status]').textContent"
        browser.wait(told)
        expected = "1 text written; 1 left alone, because somebody changed or protected them: 1.txt"
        assert browser.run(told) == expected
        every_look(browser)
    texts = [(folder / f"{number}.txt").read_text() for number in range(3)]
    assert texts == ["mine, 0", "of somebody else", TAGGED[2]]
