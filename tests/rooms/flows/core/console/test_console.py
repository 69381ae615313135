"""Lines, tables and units for people; and how long a stage still takes, said of stages that were
never run: their clock is made up."""

import io
import json
import random
import unicodedata
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest

from flows.commands.search.query import Hit
from flows.commands.search.search_command import lines_of
from flows.core.console import lines as tables
from flows.core.console.lines import (
    UNBOUNDED,
    duration,
    gib,
    json_line,
    print_lines,
    table_lines,
    wrapped,
)
from flows.core.console.lines import pace as pace_told
from flows.core.console.pace import GROUP_SECONDS, WINDOW_SECONDS, Pace
from tests.support.terminals import terminal

LONG = "media       3 files, 20 s, about 4 chunks and 12 frames, if shots take 10 s: `penstock x y`"


@pytest.mark.parametrize("width", [20, 40, 79, 80, 120])
def test_a_line_goes_on_between_words_below_its_text(width: int) -> None:
    lines = wrapped(LONG, width)
    assert " ".join(lines).split() == LONG.split()
    assert max(map(len, lines)) <= width
    hanging = 2 if width < 24 else 12
    assert all(line.startswith(" " * hanging) and line[hanging] != " " for line in lines[1:])


def test_a_command_is_not_broken_where_it_fits_in_a_line() -> None:
    text = "run again: `penstock index remove --gone --index /data/index` removes their rows"
    lines = wrapped(text, 60)
    assert any("`penstock index remove --gone --index /data/index`" in line for line in lines)
    assert max(map(len, wrapped(text, 30))) <= 30


def test_a_word_that_is_too_long_has_a_line_for_itself() -> None:
    path = "/data/" + "x" * 90
    lines = ["3 captions in", f"  {path},", "  1 failed"]
    assert wrapped(f"3 captions in {path}, 1 failed", 80) == lines


def test_letters_of_two_columns_count_as_two() -> None:
    assert wrapped("視" * 10 + " " + "頻" * 10, 30) == ["視" * 10, "  " + "頻" * 10]


@pytest.mark.parametrize("none", [False, True])
def test_a_terminal_has_colour_unless_unwanted(none: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1" if none else "")
    failed = "failed: a.mp4: no video in it. Convert it with ffmpeg"
    with terminal(40) as seen:
        print_lines(failed, "one \x1b[2J line", to=seen.to)
        text = seen.close()
    first = "failed" if none else "\x1b[31mfailed\x1b[0m"
    assert text.replace("\r", "") == (
        f"{first}: a.mp4: no video in it. Convert\n  it with ffmpeg\none ?[2J line\n"
    )


def test_a_log_has_whole_lines_at_once_without_colour(tmp_path: Path) -> None:
    with open(tmp_path / "log", "w") as log:
        print_lines("failed: " + "word " * 60 + "end", to=log)
        assert (tmp_path / "log").read_text() == "failed: " + "word " * 60 + "end\n"


def test_a_table_without_room_goes_on_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "terminal_width", lambda _: 80)
    columns = ("stage", "done", "last minute", "time left", "overall", "worked", "peak memory")
    times = ("2 h 05 min", "unknown", "3 min 20 s")
    rows = [("embed_texts", "1,204", "3.20/s", *times, "442.6 MB " * 7)]
    lines = table_lines(columns, rows, right=columns[1:-1])
    assert max(map(len, lines)) <= 80 and len(lines) > 2
    cells = {word for row in (columns, *rows) for cell in row for word in cell.split()}
    assert {word for line in lines for word in line.split()} == cells
    monkeypatch.setattr(tables, "terminal_width", lambda _: UNBOUNDED)
    lines = table_lines(columns, rows, right=columns[1:-1])
    assert len(lines) == 2 and lines[0].index("done") + len("done") == lines[1].index("1,204") + 5


def test_megabytes_are_shown_by_their_beginning_and_end_and_two_longest_paths_whole() -> None:
    to = io.StringIO()
    print_lines("failed: " + "x" * 2_000_000 + "y: no such file. Check the name", to=to)
    shown = to.getvalue()
    assert len(shown) < 1100 and len(shown.splitlines()) == 1
    assert shown.startswith("failed: xxx") and shown.endswith("xxy: no such file. Check the name\n")
    assert "1,999,0" in shown
    line = f"{'a' * 4095} and {'b' * 4095}"
    print_lines(line, to=to)
    assert to.getvalue() == f"{shown}{line}\n"


def test_what_a_terminal_obeys_is_escaped_in_json_and_means_the_same() -> None:
    controls = [*map(chr, range(0x20)), *map(chr, range(0x7F, 0xA0))]
    for letter in [*controls, *"\u202a\u202e\u2066\u2069\u200f"]:
        line = json_line({"path": f"ü{letter}😀"})
        assert letter not in line and "ü" in line and "😀" in line
        assert json.loads(line) == {"path": f"ü{letter}😀"}


def test_hits_are_printed_so() -> None:
    name = "a\x9b31m\u202egpj.b"
    fields: dict[str, Any] = dict.fromkeys(("time", "at", "box"))
    fields |= {"rank": 1, "score": 1.0, "media_path": name, "path": name}
    (line,) = lines_of([Hit(**fields, key="k", copies=0, copy_paths=(name,))])
    assert line.endswith("}\n") and json.loads(line)["path"] == name
    assert not any(unicodedata.category(each) in ("Cc", "Cf") for each in line[:-1])


LOADING_SECONDS = 40.0
Seconds = Iterator[float]
"""Seconds from one item to the next."""


def lognormal(dice: random.Random, mean: float, sigma: float) -> float:
    return mean * dice.lognormvariate(-sigma * sigma / 2, sigma)


def one_by_one(dice: random.Random) -> Seconds:
    """200 captions of about half a second."""
    yield from (lognormal(dice, 0.5, 0.6) for _ in range(200))


def slow_first(dice: random.Random) -> Seconds:
    """The same after a first caption that compiles for half as long as all others take."""
    yield 50.0
    yield from one_by_one(dice)


def in_batches(dice: random.Random) -> Seconds:
    """60 batches of 8, each told item by item."""
    for _ in range(60):
        yield lognormal(dice, 4.0, 0.4)
        yield from (0.0005 for _ in range(7))


def slow_first_batch(dice: random.Random) -> Seconds:
    yield 45.0
    yield from (0.0005 for _ in range(7))
    yield from in_batches(dice)


def very_long(dice: random.Random) -> Seconds:
    """200 items of three minutes: the window alone would hold none."""
    yield from (lognormal(dice, 180.0, 0.8) for _ in range(200))


def very_fast(dice: random.Random) -> Seconds:
    """30,000 pictures in two minutes."""
    yield from (lognormal(dice, 0.004, 1.0) for _ in range(30_000))


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage", [one_by_one, slow_first, in_batches, slow_first_batch, very_long, very_fast]
)
def test_time_left_is_soon_within_a_factor_of_2(stage: Callable[[random.Random], Seconds]) -> None:
    for seed in range(5):
        ends = [LOADING_SECONDS + end for end in accumulate(stage(random.Random(seed)))]
        assert ends[-1] - LOADING_SECONDS >= 60
        pace, made = Pace(0.0), 0
        pace.begin(LOADING_SECONDS)
        for share in (0.1, 0.3, 0.6, 0.8):
            before, made = made, round(share * len(ends))
            for end in ends[before:made]:
                pace.count(end)
            now = ends[made - 1] + GROUP_SECONDS  # when a line that moves is drawn next
            truth = ends[-1] - now
            message = (len(ends) - made) / pace.rate(now)
            assert truth / 2 < message < truth * 2, (seed, share)


def test_a_batch_that_is_only_being_told_says_nothing_of_the_rate() -> None:
    pace = Pace(0.0)
    pace.count(10.0)
    assert pace.rate(10.0) == 0.0
    for _ in range(7):
        pace.count(10.0)
    assert pace.rate(10.0 + 2 * GROUP_SECONDS) == 0.8
    pace.count(20.0)
    assert pace.rate(20.0) == 0.8


def test_time_left_counts_from_when_the_first_could_begin() -> None:
    pace = Pace(0.0)
    pace.begin(300.0)  # it loaded for five minutes
    pace.count(306.0)
    pace.begin(400.0)
    assert pace.rate(307.0) == 1 / 6.0


def test_no_time_left_is_shown_after_the_first_items() -> None:
    fast, slow = Pace(0.0), Pace(0.0)
    for at in range(13):  # pictures before videos: 24 per second, of 22 items
        fast.count(at / 24)
    assert not fast.is_steady(0.6) and fast.is_steady(5.0)
    for late in (2.0, 4.0, 5.1):  # 3 of 374
        slow.count(late)
    assert slow.rate(5.1) > 0 and not slow.is_steady(5.1) and slow.is_steady(20.0)


def test_time_left_follows_a_stage_that_becomes_slower() -> None:
    pace, now = Pace(0.0), 0.0
    for _ in range(1000):
        now += 0.1
        pace.count(now)
    for _ in range(100):
        now += 5.0
        pace.count(now)
    assert 5.0 / 2 < 1 / pace.rate(now) < 5.0 * 2 and WINDOW_SECONDS < 100 * 5


def test_a_rate_is_told_in_figures_that_say_something_and_memory_in_powers_of_two() -> None:
    assert [pace_told(rate) for rate in (3.24, 0.1, 1 / 30)] == ["3.2/s", "0.1/s", "2.0/min"]
    sizes = {3 << 29: "1.50 GiB", 150 << 20: "0.15 GiB", 102 << 20: "102 MiB", 5 << 20: "5.0 MiB"}
    assert {count: gib(count) for count in sizes} == sizes


def test_a_time_has_two_units_at_most() -> None:
    times = {9.96: "10.0 s", 10: "10 s", 59.4: "59 s", 59.6: "1 min 00 s", 200: "3 min 20 s"}
    times |= {3599.7: "1 h 00 min", 7500: "2 h 05 min"}
    assert {seconds: duration(seconds) for seconds in times} == times
