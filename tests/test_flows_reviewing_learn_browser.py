"""Learning from the page of a review in a real browser: order, correct, learn, see the result."""

import contextlib
import os
import signal
import subprocess
from pathlib import Path

import pytest

from flows.results.rounds import rounds_in
from penstock_demo.clips import write_clips
from tests.support.browser import Browser, browsing
from tests.support.learning import decide_in
from tests.support.pipeline import PENSTOCK, ROOT, read_lines
from tests.support.reviewing import WORDS, Reviewing, choose, correct, shown, wait_saved

pytestmark = [pytest.mark.browser, pytest.mark.slow]

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
    decide_in(out, lambda at, said: (style(said), "accepted") if at < CORRECTED else None)
    before = [line["caption"] for line in read_lines(out / "captions.jsonl")]
    made = Reviewing(out, order="doubt")
    made.start()
    with contextlib.ExitStack() as stack:
        stack.callback(made.kill, signal.SIGTERM)
        browser = stack.enter_context(browsing(tmp_path / "profile"))
        shown(browser, made)
        margins = browser.run(MARGINS)
        assert len(margins) == CLIPS and margins == sorted(margins)
        check_doubtful_words(browser)
        choose(browser, "filter", "open")
        for _ in range(5):
            said = browser.run(WORDS)[0]
            correct(browser, 0, style(said))
            wait_saved(browser)
            choose(browser, "filter", "open")
        browser.run("document.querySelector('#learn').click()")
        browser.wait(LEARNED + ".startsWith('penstock learn ')")
        told = browser.wait(f"{LEARNED}.startsWith('round 1') && {LEARNED[7:]}", seconds=900.0)
        (found,) = rounds_in(out)
        assert found["accepted"] and len(found["examples"]) + len(found["held_out"]) == 45
        assert "learned from 36 captions: loss per token" in told and "→" in told
        assert f"{found['changed']} of {CLIPS} captions changed" in told
        choose(browser, "filter", "learned")
        changed = browser.run(SHOWN)
        assert len(changed) == found["changed"] > 0
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
    for said, margin, at, word, told, corrected in marked:
        assert not corrected and word in said[max(0, at - len(word)) : at + len(word) + 1]
        told, _, rounded = told.partition(", margin ")
        assert told == f"in doubt: “{word}”" and abs(float(rounded) - margin) < 0.006
    assert all(row[4] == "" for row in found if row[5] or row[1] > 1)
