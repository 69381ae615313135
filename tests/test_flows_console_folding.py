"""Long lines end between words on a terminal, and nowhere else."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from flows.console.folding import Folded, folded

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ("line", "columns", "lines"),
    [
        ("a bb ccc dddd", 10, ["a bb ccc", "dddd"]),
        ("a bb ccc", 8, ["a bb ccc"]),
        ("  note: a word", 9, ["  note: a", "  word"]),
        ("in /a/path/that/is/long there", 8, ["in", "/a/path/that/is/long", "there"]),
        ("one  two", 5, ["one", "two"]),
        ("xxxxxxxxxx", 4, ["xxxxxxxxxx"]),
        ("", 4, [""]),
        ("a bb ccc dddd", 0, ["a bb ccc dddd"]),
    ],
)
def test_a_line_is_folded_between_words_and_a_long_word_stays_whole(
    line: str, columns: int, lines: list[str]
) -> None:
    assert folded(line, columns).split("\n") == lines


def test_a_line_written_in_pieces_is_folded_as_one() -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal:
        terminal.reconfigure(write_through=True)
        folding = Folded(terminal)
        folding._columns = lambda: 10  # type: ignore[method-assign]
        for piece in ("12345 ", "789 and", " more\n", "\x1b[2K12345 789 12345\n"):
            folding.write(piece)
    written = os.read(ours, 1000).decode().replace("\r\n", "\n")
    os.close(ours)
    assert written == "12345 789\nand more\n\x1b[2K12345 789 12345\n"


def shown(*words: str) -> str:
    """What a command writes to a terminal of 40 columns."""
    code = "import sys, os, fcntl, termios, struct;"
    code += "fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack('HHHH', 9, 40, 0, 0));"
    code += "from flows.cli.main import main; sys.exit(main(sys.argv[1:]))"
    ours, theirs = pty.openpty()
    subprocess.run(
        [sys.executable, "-c", code, *words], cwd=ROOT, stdout=theirs, stderr=theirs, check=False
    )
    os.close(theirs)
    with os.fdopen(ours, "rb") as terminal:
        try:
            return terminal.read1(10_000).decode().replace("\r\n", "\n")
        except OSError:
            return ""


def test_a_refusal_is_folded_on_a_terminal_and_stays_one_line_elsewhere() -> None:
    refused = ["caption", "nowhere-there-is-such-a-folder", "--modell", "demo"]
    told = shown(*refused)
    assert max(map(len, told.splitlines())) <= 40
    plain = subprocess.run(
        [sys.executable, "-m", "flows.cli.main", *refused],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert plain.stderr == " ".join(told.split()) + "\n"
