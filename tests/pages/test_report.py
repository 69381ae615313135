"""The report in a real browser: what is clicked, what is in the page, and how it looks."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from artifacts.texts.captions import Failure
from flows.core.job.plan_record import MemoryPlan, PlannedStage, RungRecord
from flows.interfaces.cli.main import main
from tests.support.browser import RIGHT, Browser
from tests.support.looks import LOOKS, unreadable
from tests.support.media import write_video
from tests.support.reports import (
    PLAN,
    SEARCHES,
    captions_of,
    curve,
    mac_folder,
    media_file,
    started_ago,
    work,
    write_run,
)

pytestmark = pytest.mark.browser

PARTS = ("host", "weight", "activation", "kv", "workspace", "context")
NO_PARTS = dict.fromkeys((f"{part}_bytes" for part in PARTS), 0)
FAILURE = ("media_path", "source", "stage", "error", "message", "hint")

TEXTS = "return [...document.querySelectorAll(arguments[0])].map(e => e.innerText)"
EVIL = "<script>document.title='run'</script><img src=x onerror=\"document.title='run'\">"
ODD = "a #1 50%?&é <script>alert(1)<\u2215script>.mp4"


CHOOSE = """const one = document.getElementById(arguments[0]);
one.value = arguments[1]; one.dispatchEvent(new Event('change'))"""


def report(out: Path) -> str:
    assert main(["report", str(out)]) == 0
    return (out / "report.html").as_uri()


def shown(browser: Browser, out: Path) -> None:
    """Open the report; nothing may go wrong."""
    opened_at(browser, report(out))
    assert browser.console() == []


def opened_at(browser: Browser, address: str) -> None:
    browser.open(address)
    browser.wait("return document.documentElement.dataset.ready")


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Twelve seconds."""
    (tmp_path / "clips").mkdir()
    return write_video(tmp_path / "clips" / ODD, ticks=range(0, 360, 6))


@pytest.mark.slow
def test_a_click_seeks_and_marks_what_is_said(browser: Browser, clip: Path, tmp_path: Path) -> None:
    file = media_file(clip)
    texts = ["first", EVIL, "third", "fourth", "fifth", "last"]
    writer = write_run(tmp_path / "out", [(file, captions_of(file, texts))])
    work(writer, "encode", 1.0, 20.0, curve(20, 10**8, 5 * 10**8), items=6)
    started_ago(writer, 22.0)
    shown(browser, tmp_path / "out")
    browser.run("document.querySelector('.card').scrollIntoView()")
    browser.click(".captions button", 3)
    video = "const v = document.querySelector('video'); "
    browser.wait(video + "return v.readyState >= 2 && !v.seeking && v.currentTime === 6")
    marked = "[aria-current]"
    assert browser.wait(TEXTS, marked) == ["0:06.0\nfourth"]
    browser.run(video + "v.muted = true; v.playbackRate = 8; v.play()")
    browser.wait(video + "return v.ended")
    assert browser.run(TEXTS, marked) == ["0:10.0\nlast"]
    assert browser.console() == []


def test_text_of_users_is_shown_not_run(browser: Browser, clip: Path, tmp_path: Path) -> None:
    file = media_file(clip)
    failure = Failure(**{**dict.fromkeys(FAILURE, EVIL), "stage": "frames", "error": "x"})
    plan, out = replace(PLAN, model=EVIL, notes=[EVIL]), tmp_path / EVIL.replace("/", "\u2215")
    writer = write_run(out, [(file, captions_of(file, [EVIL]))], [failure], plan)
    rung = RungRecord(stage=EVIL, name=EVIL, reason=EVIL, error=EVIL, time=writer.record.started)
    writer.record.rungs = [rung]
    writer.record.error = EVIL
    writer.stage("frames").warnings = [EVIL]
    writer.write(force=True)
    shown(browser, writer.path.parent)
    browser.run("document.querySelector('#videos').scrollIntoView()")
    assert browser.wait("return document.querySelector('.captions span')?.textContent") == EVIL
    assert browser.run("return document.querySelector('.card h3').textContent") == file.media_path
    assert browser.run("return document.querySelector('.trouble').textContent").count(EVIL) == 3
    assert browser.run("return document.body.textContent").count(EVIL) >= 12
    assert browser.run("return document.querySelectorAll('script, img').length") == 2
    assert browser.run("return document.title").startswith("done")
    assert browser.console() == []


def test_what_a_person_decided_on_captions_is_marked_and_can_be_chosen(
    browser: Browser, clip: Path, tmp_path: Path
) -> None:
    Image.new("RGB", (64, 48), "red").save(tmp_path / "a.png")
    file, image = media_file(clip), media_file(tmp_path / "a.png")
    rows = captions_of(file, ["kept", "bad", "mended", "said so"])
    rows[1] = replace(rows[1], review="rejected")
    rows[2] = replace(rows[2], original="wrong")
    rows[3] = replace(rows[3], review="accepted")
    (picture,) = captions_of(image, ["blurred"])
    write_run(tmp_path / "out", [(file, rows), (image, [replace(picture, review="rejected")])])
    shown(browser, tmp_path / "out")
    every = ["kept", "bad rejected", "mended corrected", "said so accepted"]
    wait_for_texts(browser, ".captions button > span", every)
    wait_for_texts(browser, "figcaption .said", ["blurred rejected"])
    browser.run(CHOOSE, "filter", "rejected")
    wait_for_texts(browser, ".captions button > span", ["bad rejected"])
    wait_for_texts(browser, "figcaption .said", ["blurred rejected"])


def wait_for_texts(browser: Browser, selector: str, expected: list[str]) -> None:
    """Wait until these texts are drawn: an element has none before."""
    found, texts = TEXTS.removeprefix("return "), json.dumps(expected)
    browser.wait(f"return JSON.stringify({found}) === JSON.stringify({texts})", selector)


@pytest.mark.slow
def test_a_summary_stands_with_its_chapters_and_is_searched(
    browser: Browser, clip: Path, tmp_path: Path
) -> None:
    file, out = media_file(clip), tmp_path / "out"
    writer = write_run(out, [(file, captions_of(file, ["first", "second", "third"]))])
    chapters = [{"start": 4.0 * n, "end": 4.0 * n + 4, "text": t} for n, t in enumerate((EVIL, ""))]
    row = {"media_path": file.media_path, "source": file.source, "summary": "A harbour. " * 40}
    more = {"tokens": 3, "chapters": chapters, "warnings": ["without words: 1 chapter"]}
    (out / "summaries.jsonl").write_text(json.dumps(row | more) + "\n")
    writer.record.summaries = 1
    writer.write(force=True)
    shown(browser, out)
    folded = "return document.querySelector('.summary').open"
    assert browser.wait(TEXTS, ".summary summary") == ["Summary · 2 chapters"]
    assert not browser.run(folded), "it is long"
    search = "const f = document.querySelector('#search'); f.value = arguments[0];"
    browser.run(f"{search} f.dispatchEvent(new Event('input'))", "harbour")
    assert browser.wait(f"{folded} || null")
    assert browser.run(TEXTS, ".captions button") == [], "no caption says it"
    assert browser.run("return document.querySelectorAll('.summary mark').length") == 40
    assert browser.run(TEXTS, ".chapters button") == [f"0:00\n{EVIL}", "0:04\nno text"]
    assert browser.run(TEXTS, ".summary .warning") == ["without words: 1 chapter"]
    browser.click(".chapters button", 1)
    browser.wait("return document.querySelector('video').currentTime === 4")
    browser.run(f"{search} f.dispatchEvent(new Event('input'))", "boat")
    browser.wait("return !document.querySelector('.card')")
    assert browser.run("return document.title").startswith("done")
    assert browser.console() == []


COUNT = """return ['.card', '.captions button', 'video[preload=metadata]']
.map(what => document.querySelectorAll(what).length)"""


def many(tmp_path: Path, clip: Path, captions: int) -> None:
    """What is left by a run over 300 videos."""
    captioned = []
    for number in range(300):
        (tmp_path / "clips" / f"{number}.mp4").hardlink_to(clip)
        file = media_file(tmp_path / "clips" / f"{number}.mp4")
        texts = [f"said {number} {n}" for n in range(captions)]
        captioned.append((file, captions_of(file, texts, 12 / captions)))
    write_run(tmp_path, captioned)


@pytest.mark.slow
def test_all_is_there_and_videos_are_read_late(
    browser: Browser, clip: Path, tmp_path: Path
) -> None:
    many(tmp_path, clip, 10)
    shown(browser, tmp_path)
    browser.wait("return document.querySelectorAll('.captions button').length === 3000")
    cards, _, loading = browser.run(COUNT)
    assert cards == 300 and loading <= 24
    found = browser.run("return [find('said 217 6'), find('said 299 9'), find('said 300 0')]")
    assert found == [True, True, False]
    browser.run("getSelection().empty(); scrollTo(0, document.body.scrollHeight)")
    last = "document.querySelectorAll('.card')[299]"
    browser.wait(f"return {last}.querySelector('[preload=metadata]')")
    assert browser.run(COUNT)[2] < 100
    assert browser.console() == []


@pytest.mark.slow
def test_of_a_very_long_run_what_is_not_looked_at_is_neither_in_the_page_nor_read(
    browser: Browser, clip: Path, tmp_path: Path
) -> None:
    many(tmp_path, clip, 80)
    shown(browser, tmp_path)
    browser.run("document.querySelector('#videos').scrollIntoView()")
    cards, buttons, loading = browser.run(COUNT)
    assert cards <= 24 and buttons <= 960 and loading <= cards
    text = browser.run("return document.body.innerText")
    assert "300 videos, 24,000 captions. Find in page" in text
    browser.run("scrollTo(0, document.body.scrollHeight)")
    titles = "[...document.querySelectorAll('.card h3')]"
    browser.wait(f"return {titles}.pop()?.textContent === '299.mp4'")
    browser.wait("return document.querySelector('video[preload=metadata]')")
    cards, buttons, loading = browser.run(COUNT)
    assert cards <= 24 and buttons <= 960 and loading <= cards
    browser.type("#search", "SAID 217 42")
    browser.wait("return document.querySelectorAll('.card').length === 1")
    assert browser.run(TEXTS, ".card h3") == ["217.mp4"]
    assert browser.run(TEXTS, ".captions button") == ["0:06.3\nsaid 217 42"]
    assert browser.run(TEXTS, ".captions mark") == ["said", "217", "42"]
    browser.run("document.querySelector('#videos').scrollIntoView()")
    browser.click(".captions button")
    browser.wait("return Math.round(10 * document.querySelector('video').currentTime) === 63")
    assert browser.console() == []


def test_files_gone_or_unplayable_are_named(browser: Browser, clip: Path, tmp_path: Path) -> None:
    clips = tmp_path / "clips"
    (clips / "broken.mp4").write_bytes(b"no video")
    (clips / "broken.jpg").write_bytes(b"no image")
    odd = clips / os.fsdecode(b"caf\xe9 #1.jpg")
    Image.new("RGB", (40, 30), "red").save(clips / "fine.png")
    Image.new("RGB", (40, 30), "blue").save(odd)
    names = ["gone.mp4", "broken.mp4", "gone.jpg", "broken.jpg", "fine.png", odd.name]
    files = [media_file(clips / name) for name in names]
    write_run(tmp_path, [(file, captions_of(file, [file.media_path])) for file in files])
    shown(browser, tmp_path)
    browser.run("document.querySelector('#videos').scrollIntoView()")
    browser.wait("return document.querySelectorAll('.card .gone').length === 2")
    first, second = browser.run(TEXTS, ".card .gone")
    assert first.split("\n") == ["The file is not where it was:", str(clips / "gone.mp4")]
    assert second.split("\n") == ["Not here, or not for this browser:", str(clips / "broken.mp4")]
    tiles = "return [...document.querySelectorAll('figure .frame')]"
    tiles += ".map(f => f.textContent || f.querySelector('img').naturalWidth)"
    browser.run("document.querySelector('#images').scrollIntoView()")
    browser.wait(tiles + ".every(Boolean)")
    gone = f"The file is not where it was: {clips / 'gone.jpg'}"
    assert browser.run(tiles) == [gone, f"Not here, or damaged: {clips / 'broken.jpg'}", 40, 40]
    browser.click("figure .frame", 2)
    said_there = "return document.querySelector('dialog[open] p').textContent"
    assert browser.wait(said_there) == "fine.png"
    browser.press(RIGHT)
    browser.wait("return document.querySelector('dialog img').naturalWidth === 40")
    assert browser.run(said_there) == files[-1].media_path


def test_a_report_far_from_its_media_shows_thumbnails_and_where_those_were(
    browser: Browser, clip: Path, tmp_path: Path
) -> None:
    picture = clip.with_name("a.png")
    Image.new("RGB", (640, 480), "red").save(picture)
    files = [media_file(path) for path in (picture, clip)]
    write_run(tmp_path, [(file, captions_of(file, ["x"])) for file in files])
    address = report(tmp_path)
    clip.parent.rename(tmp_path / "elsewhere")
    opened_at(browser, address)
    for place, why in (("#images .frame", "damaged"), ("#videos .player", "not for this browser")):
        browser.run("document.querySelector(arguments[0]).scrollIntoView()", place)
        small = f"return document.querySelector('{place} img[src^=data]')?.naturalWidth"
        assert browser.wait(small) == (240 if why == "damaged" else 64)
        assert f"Not here, or {why}:" in browser.run(TEXTS, place)[0]
    browser.click("#images .frame")
    browser.wait("return document.querySelector('dialog img')?.naturalWidth === 240")
    assert str(picture) in browser.run(TEXTS, "dialog .gone")[0]


@pytest.mark.slow
def test_words_are_found_in_names_and_captions_in_any_form(
    browser: Browser, tmp_path: Path
) -> None:
    write_run(tmp_path, mac_folder(tmp_path / "photos"))
    shown(browser, tmp_path)
    for query, names in SEARCHES.items():
        browser.run("document.querySelector('#search').value = ''")
        browser.type("#search", query)
        found = "[...document.querySelectorAll('figure .name')].map(e => e.firstChild.textContent)"
        browser.wait(f"return JSON.stringify({found}) === JSON.stringify(arguments[0])", names)
    browser.run("document.querySelector('#search').value = ''")
    browser.type("#search", "Müller RING")
    browser.wait("return document.querySelectorAll('mark').length === 2")
    assert browser.run(TEXTS, "mark") == ["ring", "Müller"]


HEIGHTS = """const path = document.querySelector('.curve.decode[d]').getAttribute('d');
const all = [...path.matchAll(/ ([0-9.]+)/g)].map(found => +found[1]);
const area = document.querySelector('.area.decode').getBBox();
return [all.length, ...[Math.min(...all), Math.max(...all)].map(y => area.y + area.height - y)]"""


@pytest.mark.slow
def test_the_time_line_tells_what_is_pointed_at_or_typed(browser: Browser, tmp_path: Path) -> None:
    writer = write_run(tmp_path, [])
    planned = PlannedStage(stage="decode", peak_bytes=6 * 10**8, name="batch 4")
    writer.record.plan.memory = MemoryPlan(budget_bytes=9 * 10**8, stages=[planned])
    work(writer, "frames", 0.0, 10.0, [[n / 2, 2 * 10**8, 0] for n in range(20)])
    flat = [[n / 20, 3 * 10**8, 0] for n in range(7199)]
    flat[4000][1] = 7 * 10**8  # one point of 7,200, of which a few share each pixel
    work(writer, "decode", 10.0, 360.0, flat)
    started_ago(writer, 370.0)
    shown(browser, tmp_path)
    browser.run("document.querySelector('.plot').scrollIntoView({block: 'center'})")
    browser.hover(".plot svg", 0, 0)
    (message,) = browser.wait(TEXTS, ".tip")
    at, *rest = message.split("\n")
    assert at.startswith(("2:", "3:"))
    assert rest == ["decode", "host 300 MB of 600 MB planned", "batch 4"]
    points, highest, lowest = browser.run(HEIGHTS)
    assert points < 1300
    assert highest / lowest == pytest.approx(7 / 3, rel=0.01)
    labels = ".plot svg > text[text-anchor=middle]"
    last = "return [...document.querySelectorAll(arguments[0])].pop().textContent"
    assert browser.run(last, labels) == "6:00"
    browser.run("document.querySelector('.plot svg').focus()")
    browser.press("+", "+", RIGHT, RIGHT)
    assert browser.run(last, labels) < "4:00"
    assert "host 300 MB" in browser.run(last, ".plot [aria-live]")
    browser.press("0")
    assert browser.run(last, labels) == "6:00"
    assert browser.console() == []


GB = 10**9
NAMES = "return [...document.querySelectorAll('.card h3')].map(e => e.textContent)"
IN_SIGHT = (
    "document.querySelectorAll('.whole').forEach(e => { e.style.contentVisibility = 'visible' })"
)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the report on a run far below its budget, in which four files failed."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "clips").mkdir()
    clip = write_video(folder / "clips" / "b.mp4", ticks=range(0, 360, 6))
    captioned = []
    for name, count in (("b.mp4", 2), ("c10.mp4", 3), ("c9.mp4", 1), ("a.mp4", 2)):
        path = folder / "clips" / name
        if path != clip:
            path.hardlink_to(clip)
        rows = captions_of(media_file(path), [f"{name} {'and on ' * n}" for n in range(count)])
        if name == "a.mp4":
            rows[0] = replace(rows[0], ended="length")
        captioned.append((media_file(path), rows))
    picture = folder / "clips" / "p.png"
    Image.new("RGB", (40, 30), "red").save(picture)
    captioned.append((media_file(picture), captions_of(media_file(picture), ["A picture."])))
    why = dict.fromkeys(FAILURE, "x")
    failures = [Failure(**{**why, "media_path": f"bad {n}.mp4"}) for n in range(4)]
    writer = write_run(folder, captioned, failures)
    planned = PlannedStage(stage="decode", peak_bytes=GB, name="batch 4")
    writer.record.plan.memory = MemoryPlan(budget_bytes=17 * GB, stages=[planned])
    work(writer, "encode", 1.0, 30.0, curve(30, GB // 10, GB // 2))
    work(writer, "decode", 31.0, 30.0, curve(30, GB // 10, GB // 2))
    started_ago(writer, 61.0)
    return report(folder)


def test_media_are_shown_as_and_in_the_order_asked_for(browser: Browser, address: str) -> None:
    opened_at(browser, address)
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


def test_a_run_with_failed_files_is_not_told_as_good(browser: Browser, address: str) -> None:
    opened_at(browser, address)
    badge = "const badge = document.querySelector('.badge'); return "
    assert browser.run(badge + "badge.textContent") == "! done, 4 failed"
    assert browser.run("return document.title").startswith("done, 4 failed")
    warned = "getComputedStyle(document.querySelector('.warning')).backgroundColor"
    assert browser.run(f"{badge} getComputedStyle(badge).backgroundColor === {warned}")


@pytest.mark.slow
@pytest.mark.parametrize("view", ["list", "grid"])
def test_nothing_lies_on_anything_else_and_all_can_be_read(
    browser: Browser, address: str, view: str
) -> None:
    opened_at(browser, address)
    browser.run(CHOOSE, "view", view)
    browser.run(IN_SIGHT)
    browser.wait("return document.querySelector('.plot .note')")
    assert [wrong for look in LOOKS for wrong in unreadable(browser, *look)] == []
