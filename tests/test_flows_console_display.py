"""What a person sees while a run works: on terminals of 80 and 120 columns, and in a log."""

import fcntl
import io
import os
import pty
import re
import struct
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import pytest

from flows.console import tables
from flows.console.display import Display
from flows.console.pace import WINDOW_SECONDS, Pace
from stages.process.events import Item, Noted

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
LOADS = "the vision half, 2.3 GB"


class Terminal:
    """A terminal of so many columns, and all that was written to it."""

    def __init__(self, columns: int) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
        self.to: IO[str] = os.fdopen(theirs, "w")
        self.pieces: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                self.pieces.append(os.read(self._ours, 1 << 16).decode(errors="replace"))
            except OSError:
                return

    def close(self) -> str:
        self.to.close()
        self._reader.join(5)
        os.close(self._ours)
        return "".join(self.pieces)


@contextmanager
def terminal(columns: int) -> Iterator[Terminal]:
    made = Terminal(columns)
    yield made
    if not made.to.closed:
        made.close()


def shown(text: str) -> list[str]:
    """The lines that stood there at any time, without control characters."""
    return [line for part in text.split("\r") for line in CONTROL.sub("", part).split("\n") if line]


def run(display: Display) -> None:
    display.doing("reading the sources and the model")
    display.stage("encode", 40, 2, LOADS)
    time.sleep(0.5)
    display.listen("encode", Noted(values={"ready": True}))
    for _ in range(20):
        time.sleep(0.01)
        display.listen("encode", Item())
    display.say("a note " + "of many words " * 12)
    display.fail(media_path="odd.mp4", message="no video in it", hint="Convert it")
    for _ in range(18):
        display.listen("encode", Item())
    display.close()


@pytest.mark.parametrize("columns", [80, 120])
def test_a_terminal_shows_a_line_that_moves_and_keeps_its_width(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    with terminal(columns) as seen:
        run(Display(to=seen.to))
        text = seen.close()
    lines = shown(text)
    moving = [line for line in lines if "━" in line or "loading" in line]
    assert max(map(len, moving)) <= columns
    assert any(f"encoding: loading {LOADS}" in line for line in moving)
    loading = [line for line in moving if "loading" in line]
    assert len(set(loading)) > 2, "nothing moves while the stage loads"
    assert any(re.search(r"\d+/40  [\d.]+/s  [\d.]+ s left", line) for line in moving)
    kept = [line for line in lines if line not in moving]
    assert any(line.startswith("encoding: 38 in ") for line in kept)
    assert any(line.startswith("failed: odd.mp4: no video in it. Convert it") for line in kept)
    assert "\x1b[?25l" not in text, "the cursor would be gone after a kill"
    assert re.search(r"\x1b\[[0-9;]*3\dm", text), "it has colours"


def test_no_colour_where_none_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    with terminal(80) as seen:
        run(Display(to=seen.to))
        text = seen.close()
    assert not re.search(r"\x1b\[[0-9;]*3\dm", text) and "loading" in text


def test_a_log_has_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.console.display.LINE_SECONDS", 0.0)
    log = io.StringIO()
    run(Display(to=log))
    lines = log.getvalue().splitlines()
    assert lines[0] == "encoding: 38 to do, 2 there already"
    assert "\x1b" not in log.getvalue() and "\r" not in log.getvalue()
    assert any(re.fullmatch(r"encoding 9/40  [\d.]+/s  [\d.]+ s left", line) for line in lines)
    assert lines[-1].startswith("encoding: 38 in ")


def test_time_left_counts_from_when_the_first_could_begin() -> None:
    pace = Pace(0.0)
    pace.begin(300.0)  # it loaded for five minutes
    for item in range(1, 11):
        pace.count(300.0 + 6.0 * item)
    truth = 90 * 6.0
    assert truth / 2 < pace.seconds_left(90) < truth * 2


def test_time_left_follows_a_stage_that_becomes_slower() -> None:
    pace, now = Pace(0.0), 0.0
    for _ in range(1000):
        now += 0.1
        pace.count(now)
    for _ in range(100):
        now += 5.0
        pace.count(now)
    assert 5.0 / 2 < pace.seconds_left(1) < 5.0 * 2 and WINDOW_SECONDS < 100 * 5


def test_a_table_goes_on_between_words_where_there_is_no_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tables, "terminal_width", lambda: 80)
    columns = ("stage", "done", "last minute", "peak memory")
    rows = [("decode", "1,204", "3.20/s", "442.6 MB host (29.3 MB of 39.9 MB planned) " * 2)]
    lines = tables.table_lines(columns, rows)
    assert max(map(len, lines)) <= 80 and len(lines) > 2
    words = {word for row in (columns, *rows) for cell in row for word in cell.split()}
    assert {word for line in lines for word in line.split()} == words
    monkeypatch.setattr(tables, "terminal_width", lambda: tables.UNBOUNDED)
    assert len(tables.table_lines(columns, rows)) == 2
