"""What commands show on terminals of 80 and 120 columns, and in a log: no line is broken inside a
word, no colour comes where none is wanted, and a log has no control character."""

import io
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flows.core.console.display import READING, Display, StageStart
from flows.core.options.training import TuneRun
from flows.execution.run_observer import RunObserver
from flows.interfaces.cli.main import main
from stages.process.events import Answered, StageNotes
from tests.support.reports import PLAN, write_run
from tests.support.terminals import COLOUR, Recording, shown, terminal, too_wide, words

LOADS = "the vision half, 2.3 GB"


@pytest.fixture(autouse=True)
def drawn_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.core.console.modes.REFRESH_PER_SECOND", 40)
    monkeypatch.setattr("flows.core.console.pace.GROUP_SECONDS", 0.02)
    monkeypatch.setattr("flows.core.console.pace.STEADY_ITEMS", 1)
    monkeypatch.setattr("flows.core.console.pace.STEADY_SECONDS", 0.0)
    monkeypatch.setenv("TERM", "xterm")


def run(display: Display) -> None:
    display.doing(READING)
    display.stage(StageStart(name="encode", total=40, done=2, loads=LOADS))
    time.sleep(0.2)
    display.on_event("encode", StageNotes(values={"loaded_bytes": 1}))
    time.sleep(0.2)
    display.on_event("encode", StageNotes(values={"ready": True}))
    for _ in range(20):
        time.sleep(0.01)
        display.on_event("encode", Answered())
    display.print_line("a note " + "of many words " * 12)
    display.fail(media_path="odd.mp4", message="no video in it", hint="Convert it")
    for _ in range(18):
        display.on_event("encode", Answered())
    display.close()


def on_terminal(**options: bool) -> str:
    with terminal(80) as seen:
        run(Display(to=seen.to, **options))
        return seen.close()


@pytest.mark.slow
def test_a_terminal_shows_a_line_that_moves_in_its_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    text = on_terminal()
    lines = shown(text)
    moving = [line for line in lines if "━" in line or "loading" in line or "so far" in line]
    assert max(map(len, moving)) <= 80
    assert any(f"encoding: loading {LOADS}" in line for line in moving)
    assert any("encoding: starting Python and torch" in line for line in lines)
    loading = [line for line in moving if "so far" in line]
    assert len(set(loading)) > 2, "nothing moves while the stage loads"
    assert any(re.search(r"\d+/40  [\d.]+/s  [\d.]+ s left", line) for line in moving)
    kept = [line for line in lines if line not in moving]
    assert any(line.startswith("encoding: 38 chunks in ") for line in kept)
    assert any(line.startswith("failed: odd.mp4: no video in it. Convert it") for line in kept)
    assert "\x1b[?25l" not in text, "the cursor would be gone after a kill"
    assert COLOUR.search(text)
    monkeypatch.setenv("NO_COLOR", "1")
    text = on_terminal()
    assert not COLOUR.search(text) and "loading" in text


def test_a_log_has_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.core.console.modes.LINE_SECONDS", 0.0)
    log = io.StringIO()
    run(Display(to=log))
    lines = log.getvalue().splitlines()
    assert lines[0] == "encoding: 38 chunks to do, 2 already done"
    assert "\x1b" not in log.getvalue() and "\r" not in log.getvalue()
    assert any(re.fullmatch(r"encoding 9/40  [\d.]+/s  [\d.]+ s left", line) for line in lines)
    assert lines[-1].startswith("encoding: 38 chunks in ")


@pytest.mark.parametrize(
    ("of_run", "end"), [(7262.0, "2 h 01 min left"), (None, r"[\d.]+ s left for this stage")]
)
def test_the_time_left_is_that_of_the_run(
    of_run: float | None, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.core.console.modes.LINE_SECONDS", 0.0)
    log = io.StringIO()
    display = Display(to=log)
    display.stage(StageStart(name="encode", total=40, done=2, run_left=lambda: of_run))
    for _ in range(20):
        time.sleep(0.01)
        display.on_event("encode", Answered())
    display.close()
    lines = log.getvalue().splitlines()
    assert any(re.fullmatch(rf"encoding \d+/40  [\d.]+/s  {end}", line) for line in lines)


def test_items_made_beside_the_stage_before_count_as_made() -> None:
    log = io.StringIO()
    display = Display(to=log)
    display.stage(StageStart(name="frames", total=3, done=0))
    display.on_event("encode", Answered())
    display.stage(StageStart(name="encode", total=3, done=1))
    display.on_event("encode", Answered())
    display.on_event("encode", Answered())
    display.close()
    first, second = log.getvalue().splitlines()[-2:]
    assert first == "encoding: 2 chunks to do, 1 done meanwhile"
    assert second.startswith("encoding: 3 chunks in ")


def test_a_stage_that_works_beside_is_counted_on_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.core.console.modes.LINE_SECONDS", 0.0)
    log = io.StringIO()
    display = Display(to=log)
    display.stage(StageStart(name="encode", total=3, done=0))
    for stage in ("encode", "decode", "decode", "encode"):
        display.on_event(stage, Answered())
    assert log.getvalue().splitlines()[-1].endswith("captioning 2"), log.getvalue()


def test_a_fleeting_display_leaves_nothing() -> None:
    shown_there = Recording(on_terminal(quiet=True, fleeting=True), 0)
    assert shown_there.kept == [] and any(LOADS in line for line in shown_there.lines)
    log = io.StringIO()
    run(Display(quiet=True, fleeting=True, to=log))
    assert log.getvalue() == ""


def test_a_terminal_that_obeys_nothing_has_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    text = on_terminal()
    assert "\x1b" not in text and "encoding: 38 chunks to do, 2 already done" in text
    assert too_wide(text.splitlines(), 80) == []


def test_a_log_is_not_silent_before_the_first_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.core.console.modes.SILENT_SECONDS", 0.05)
    log = io.StringIO()
    display = Display(to=log)
    display.doing(READING)
    assert log.getvalue() == ""
    wait_for(lambda: bool(log.getvalue()))
    assert log.getvalue() == f"{READING}\n"
    display.doing("something more")
    time.sleep(0.1)
    assert log.getvalue() == f"{READING}\n"


@pytest.mark.slow
def test_a_log_says_again_and_again_what_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.core.console.modes.SILENT_SECONDS", 0.05)
    monkeypatch.setattr("flows.core.console.modes.QUIET_SECONDS", 0.3)
    log = io.StringIO()
    display = Display(to=log)
    display.doing(READING)
    wait_for(lambda: f"{READING}: " in log.getvalue())
    begun = time.monotonic()
    display.stage(StageStart(name="encode", total=3, done=0, loads=LOADS))
    starting = "encoding: starting Python and torch, "
    wait_for(lambda: log.getvalue().count(starting) >= 2)
    assert "loading" not in log.getvalue(), "nothing is loaded before the imports have ended"
    display.on_event("encode", StageNotes(values={"loaded_bytes": 1, "import_seconds": 0.6}))
    wait_for(lambda: log.getvalue().count(f"encoding: loading {LOADS}, ") >= 2)
    loading, so_far = log.getvalue().partition("loading")[2], time.monotonic() - begun
    assert float(loading.split(", ")[2].split(" s")[0]) < so_far - 0.5, "it counts the imports"
    assert starting not in loading
    display.close()
    there = log.getvalue()
    time.sleep(0.6)
    assert log.getvalue() == there


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


ENDS: list[Callable[[Display], object]] = [
    Display.close,
    lambda display: display.print_line("something"),
    lambda display: display.stage(StageStart(name="frames", total=3, done=0)),
]


def test_a_log_says_nothing_of_what_took_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.core.console.modes.SILENT_SECONDS", 0.1)
    log = io.StringIO()
    for end in ENDS:
        display = Display(to=log)
        display.doing(READING)
        end(display)
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
    assert log.getvalue().splitlines() == ["scoring: 1 text to do", "tuning: 1 step to do"]


def test_summaries_that_may_be_stored_in_part_are_announced_as_an_estimate() -> None:
    log = io.StringIO()
    observer = RunObserver(Display(to=log))
    observer.on_stage_start("summarize", 27, 0)
    for _ in range(24):
        observer.on_event("summarize", Answered())
    observer.display.close()
    announced, made = log.getvalue().splitlines()
    assert announced == "summarizing: about 27 chapters or summaries to do"
    assert made.startswith("summarizing: 24 chapters or summaries in ")


WIDTHS = (80, 120)
LONG = "clips/" + "a very long name of " * 7 + "a clip.mp4"
OUT, NOWHERE = "OUT", "NOWHERE"
COMMANDS = {
    "help": ["--help"],
    "help of caption": ["caption", "--help"],
    "help of export": ["export", "--help"],
    "status": ["status", OUT],
    "report": ["report", OUT],
    "doctor": ["doctor"],
    "empty store": ["cache", "ls", "--store", f"{NOWHERE}/store"],
    "training": ["plan", "--model", "demo", "--train", "lora", "--explain"],
    "too small": ["plan", "--model", "demo", "--train", "full", "--memory", "1MB"],
    "no run": ["status", NOWHERE],
    "no media": ["caption", NOWHERE, "--model", "demo", "--out", f"{OUT}-none"],
    "no source": ["caption"],
    "no option": ["caption", "VIDEOS/", "--modell", "demo"],
    "no command": ["capton", "VIDEOS/"],
    "no size": ["cache", "gc", "--max", "much"],
    "no index": ["search", "a red circle", "--index", NOWHERE],
}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with long names, a large plan and failures."""
    folder = tmp_path_factory.mktemp("run") / "out"
    writer = write_run(folder, [])
    for stage in ("frames", "encode", "decode"):
        writer.expect(stage, 120_000, 1_000)
    writer.record.plan = PLAN
    writer.fail("frames", {"media_path": LONG, "message": "no video in it", "hint": "Convert it"})
    writer.finish("interrupted")
    return folder


def captions_of(command: list[str], out: Path, columns: int = 0) -> Recording:
    """What a command says in this process, on a terminal of so many columns; 0: in a log."""
    filled = [word.replace(NOWHERE, f"{out}-nowhere").replace(OUT, str(out)) for word in command]
    with pytest.MonkeyPatch.context() as patch, terminal(columns or 80) as seen:
        log = io.StringIO()
        for name in ("stdout", "stderr"):
            patch.setattr(sys, name, seen.to if columns else log)
        patch.setenv("TERM", "xterm")
        patch.setenv("COLUMNS", str(columns or 1000))  # argparse asks the test's own terminal
        try:
            code = main(filled)
        except SystemExit as exit:
            code = int(exit.code or 0)
        return Recording(seen.close() if columns else log.getvalue(), code)


@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_is_broken_inside_a_word(name: str, out: Path) -> None:
    log = captions_of(COMMANDS[name], out)
    assert log.text and "\x1b" not in log.text and "\r" not in log.text
    for columns in WIDTHS:
        shown = captions_of(COMMANDS[name], out, columns)
        assert shown.code == log.code
        assert too_wide(shown.lines, columns) == []
        assert words(shown.kept) <= words(log.lines)
