"""What a person sees while a run works: on terminals of 80 and 120 columns, and in a log."""

import io
import re
import time
from types import SimpleNamespace
from typing import Any

import pytest

from flows.console.display import READING, Display
from flows.options.tune import TuneRun
from flows.running.run_observer import RunObserver
from stages.process.events import Item, StageNotes
from tests.support.terminals import COLOUR, Recording, shown, terminal, too_wide

LOADS = "the vision half, 2.3 GB"


@pytest.fixture(autouse=True)
def drawn_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.console.display.REFRESH_PER_SECOND", 40)
    monkeypatch.setattr("flows.console.pace.GROUP_SECONDS", 0.02)
    monkeypatch.setenv("TERM", "xterm")


def run(display: Display) -> None:
    display.doing(READING)
    display.stage("encode", 40, 2, LOADS)
    time.sleep(0.2)
    display.on_event("encode", StageNotes(values={"ready": True}))
    for _ in range(20):
        time.sleep(0.01)
        display.on_event("encode", Item())
    display.print_line("a note " + "of many words " * 12)
    display.fail(media_path="odd.mp4", message="no video in it", hint="Convert it")
    for _ in range(18):
        display.on_event("encode", Item())
    display.close()


def on_terminal(**options: bool) -> str:
    with terminal(80) as seen:
        run(Display(to=seen.to, **options))
        return seen.close()


def test_a_terminal_shows_a_line_that_moves_in_its_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    text = on_terminal()
    lines = shown(text)
    moving = [line for line in lines if "━" in line or "loading" in line]
    assert max(map(len, moving)) <= 80
    assert any(f"encoding: loading {LOADS}" in line for line in moving)
    loading = [line for line in moving if "loading" in line]
    assert len(set(loading)) > 2, "nothing moves while the stage loads"
    assert any(re.search(r"\d+/40  [\d.]+/s  [\d.]+ s left", line) for line in moving)
    kept = [line for line in lines if line not in moving]
    assert any(line.startswith("encoding: 38 in ") for line in kept)
    assert any(line.startswith("failed: odd.mp4: no video in it. Convert it") for line in kept)
    assert "\x1b[?25l" not in text, "the cursor would be gone after a kill"
    assert COLOUR.search(text)
    monkeypatch.setenv("NO_COLOR", "1")
    text = on_terminal()
    assert not COLOUR.search(text) and "loading" in text


def test_a_log_has_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.console.display.LINE_SECONDS", 0.0)
    log = io.StringIO()
    run(Display(to=log))
    lines = log.getvalue().splitlines()
    assert lines[0] == "encoding: 38 to do, 2 already done"
    assert "\x1b" not in log.getvalue() and "\r" not in log.getvalue()
    assert any(re.fullmatch(r"encoding 9/40  [\d.]+/s  [\d.]+ s left", line) for line in lines)
    assert lines[-1].startswith("encoding: 38 in ")


def test_items_made_beside_the_stage_before_count_as_made() -> None:
    log = io.StringIO()
    display = Display(to=log)
    display.stage("frames", 3, 0)
    display.on_event("encode", Item())
    display.stage("encode", 3, 1)
    display.on_event("encode", Item())
    display.on_event("encode", Item())
    display.close()
    first, second = log.getvalue().splitlines()[-2:]
    assert first == "encoding: 2 to do" and second.startswith("encoding: 3 in ")


def test_a_fleeting_display_leaves_nothing() -> None:
    shown_there = Recording(on_terminal(quiet=True, fleeting=True), 0)
    assert shown_there.kept == [] and any(LOADS in line for line in shown_there.lines)
    log = io.StringIO()
    run(Display(quiet=True, fleeting=True, to=log))
    assert log.getvalue() == ""


def test_a_terminal_that_obeys_nothing_has_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    text = on_terminal()
    assert "\x1b" not in text and "encoding: 38 to do, 2 already done" in text
    assert too_wide(text.splitlines(), 80) == []


def test_a_log_is_not_silent_before_the_first_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.console.display.SILENT_SECONDS", 0.05)
    log = io.StringIO()
    display = Display(to=log)
    display.doing(READING)
    assert log.getvalue() == ""
    deadline = time.monotonic() + 20
    while not log.getvalue() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert log.getvalue() == f"{READING}\n"
    display.doing("something more")
    time.sleep(0.1)
    assert log.getvalue() == f"{READING}\n"


@pytest.mark.parametrize("end", ["close", "print_line", "stage"])
def test_a_log_says_nothing_of_what_took_no_time(end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.console.display.SILENT_SECONDS", 0.1)
    log = io.StringIO()
    display = Display(to=log)
    display.doing(READING)
    if end == "close":
        display.close()
    elif end == "print_line":
        display.print_line("something")
    else:
        display.stage("frames", 3, 0)
    time.sleep(0.2)
    assert READING not in log.getvalue()


def test_an_adapter_that_is_only_scored_is_not_shown_as_tuned() -> None:
    log = io.StringIO()
    observer = RunObserver(Display(to=log))
    for scored_only in (True, False):
        config = TuneRun(sources=(), model="m", scored_only=scored_only)
        job: Any = SimpleNamespace(config=config, model=SimpleNamespace(settings={}))
        observer._job = job
        observer.on_stage_start("tune", 1, 0)
    assert log.getvalue().splitlines() == ["scoring: 1 to do", "tuning: 1 to do"]
