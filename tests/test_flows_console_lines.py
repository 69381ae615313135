"""Lines and tables for people: they end between words, and obey who wants no colour."""

import io
import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from flows.cli.search_command import lines_of
from flows.console import tables
from flows.console.lines import UNBOUNDED, json_line, print_lines, wrapped
from flows.console.tables import table_lines
from flows.search.query import Hit
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
    assert wrapped(f"3 captions in {path}, 1 failed", 80) == [
        "3 captions in",
        f"  {path},",
        "  1 failed",
    ]


def test_letters_of_two_columns_count_as_two() -> None:
    assert wrapped("視" * 10 + " " + "頻" * 10, 30) == ["視" * 10, "  " + "頻" * 10]


@pytest.mark.parametrize("none", [False, True])
def test_a_terminal_has_a_word_in_colour_unless_none_is_wanted(
    none: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1" if none else "")
    with terminal(40) as seen:
        print_lines(
            "failed: a.mp4: no video in it. Convert it with ffmpeg", "one \x1b[2J line", to=seen.to
        )
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
    rows = [
        ("embed_texts", "1,204", "3.20/s", "2 h 05 min", "unknown", "3 min 20 s", "442.6 MB " * 7)
    ]
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
