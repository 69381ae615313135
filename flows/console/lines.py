"""Prints lines for people: wrapped to the width of a terminal, with one word in colour. Without a
terminal, lines are printed whole.
"""

import json
import os
import re
import sys
from collections.abc import Iterator
from typing import IO, Any

UNBOUNDED = 1000
"""Columns of what is no terminal: lines of a log are never broken."""
LONGEST_LINE = 10_000
"""Characters of a line that is shown whole."""
KEPT_OF_LONG = 500
"""Characters that are shown of a longer one's beginning, and of its end."""
DUMB = frozenset(["dumb", "unknown"])
"""Values of TERM: terminals that obey nothing."""
COMMANDS = re.compile(r"(?:`[^`]*`|\S)+")
"""A word; what stands in backticks is one, so that it can be copied."""
GAP = re.compile(r"(?<=\S) {2,}(?=\S)")
"""What stands between a line's label and its text."""
COLOURS = (
    ("31", re.compile(r"failed(?=:| \d)|(damaged|died|not reached)(?=[:,])|does not fit")),
    ("33", re.compile(r"note(?=:|  )|gone(?=:)|(instead|missing)(?=  )|may not fit|interrupted")),
    ("32", re.compile(r"fits(?=:| into)|done(?= \d)|running(?= for)")),
)
"""The colour of a line's first word, by what it is."""


def print_lines(*lines: str, to: IO[str] | None = None) -> None:
    """Write lines to the standard output, or elsewhere, as it takes them."""
    to = to or sys.stdout
    for line in lines:
        print("\n".join(fitted(line, to)), file=to, flush=True)


def fitted(text: str, to: IO[str] | None) -> list[str]:
    """Return a line as people read it there: as one, but in several of a terminal's width."""
    text = printable(text)
    if not is_terminal(to):
        return [text]
    lines = wrapped(text, terminal_width(to))
    return [coloured(lines[0]), *lines[1:]] if has_colours() else lines


def wrapped(text: str, width: int, hanging: int | None = None) -> list[str]:
    """Return a text in lines that end between words, the further ones from the column `hanging` on
    (None: from where its text begins). A word that is wider has a line for itself."""
    if columns_of(text) <= width:
        return [text]
    hanging = _hanging(text, width) if hanging is None else hanging
    lines, line = [], ""
    for gap, word in _words(text, width - hanging):
        if line.strip() and columns_of(line + gap + word) > width:
            lines.append(line)
            line = " " * hanging + word
        else:
            line += gap + word
    return [*lines, line]


def coloured(line: str) -> str:
    """Return a line with its first word in colour, where that says how things stand."""
    for colour, first in COLOURS:
        if found := first.match(line):
            return f"\x1b[{colour}m{found.group()}\x1b[0m{line[found.end() :]}"
    return line


def has_colours() -> bool:
    """Return whether people want colours, as https://no-color.org has it."""
    return not os.environ.get("NO_COLOR") and is_obedient()


def is_obedient() -> bool:
    """Return whether terminals here move their cursor when they are told to."""
    return os.environ.get("TERM") not in DUMB


def is_terminal(to: IO[str] | None) -> bool:
    """Return whether somebody sits there."""
    return to is not None and not to.closed and to.isatty()


def terminal_width(to: IO[str] | None) -> int:
    """Return the columns of the terminal that is written to."""
    try:
        return os.get_terminal_size(to.fileno()).columns or UNBOUNDED if to else UNBOUNDED
    except (OSError, ValueError, AttributeError):
        return UNBOUNDED


def columns_of(text: str) -> int:
    """Return the columns that a text takes: some letters take two, some none."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def printable(text: str) -> str:
    """Return a text without control characters, which a file's name may hold and a terminal
    obeys. What is longer than lines with two paths of the greatest length loses its middle."""
    if len(text) > LONGEST_LINE:
        left_out = len(text) - 2 * KEPT_OF_LONG
        text = f"{text[:KEPT_OF_LONG]} … ({left_out:,} letters) … {text[-KEPT_OF_LONG:]}"
    return "".join(c if c.isprintable() else "?" for c in text)


def json_line(value: Any) -> str:
    """Return a value as a line of JSON in which letters stand as they are, and what a terminal may
    obey is escaped: control characters, also those above ASCII, and marks of writing direction."""
    return escaped(json.dumps(value, ensure_ascii=False))


def escaped(text: str) -> str:
    """Return a text with what a terminal may obey written as in JSON: `\\u001b`."""
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)


def shortened(text: str, width: int) -> str:
    """Return a text of at most so many columns; what was cut off ends with `…`."""
    if columns_of(text) <= width:
        return text
    text = text[:width]  # a letter may take no column, and a text be long
    while columns_of(text) >= width:
        text = text[:-1]
    return f"{text.rstrip()}…"


def _hanging(text: str, width: int) -> int:
    """Return the column at which further lines of a text begin."""
    labels = [gap.end() for gap in GAP.finditer(text) if gap.end() <= width // 2]
    return labels[-1] if labels else len(text) - len(text.lstrip()) + 2


def _words(text: str, room: int) -> Iterator[tuple[str, str]]:
    """Yield the words of a text, each with the gap before it."""
    end = 0
    for found in COMMANDS.finditer(text):
        gap = text[end : found.start()]
        if columns_of(found.group()) <= room:
            yield gap, found.group()
        else:
            for word in found.group().split():
                yield gap, word
                gap = " "
        end = found.end()
