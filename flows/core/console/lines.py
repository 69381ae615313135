"""Prints lines and tables that fit the terminal, with one word of a line in colour.
Writes figures with their units.

Lines are wrapped to the width of the terminal. Without a terminal, they are not wrapped.
"""

import json
import os
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import IO, Any

from artifacts.errors import plain
from stages.process.output_streams import lasting

UNBOUNDED = 1000
"""Width without a terminal: lines of a log are never wrapped."""
LONGEST_LINE = 10_000
"""Maximum characters of a line that is printed whole."""
KEPT_OF_LONG = 500
"""Characters kept at the start and at the end of a longer line."""
DUMB = frozenset(["dumb", "unknown"])
"""Values of TERM for terminals without control codes."""
CELL_VARIABLES = ("JPY_PARENT_PID", "COLAB_RELEASE_TAG")
"""Environment variables that a notebook's kernel leaves to the commands of a cell."""
COMMANDS = re.compile(r"(?:`[^`]*`|\S)+")
"""A word; text in backticks is one word, so that it can be copied."""
GAP = re.compile(r"(?<=\S) {2,}(?=\S)")
"""The gap between a line's label and its text."""
COLOURS = (
    ("31", re.compile(r"failed(?=:| \d)|(damaged|died|not reached)(?=[:,])|does not fit")),
    ("33", re.compile(r"note(?=:|  )|gone(?=:)|(instead|missing)(?=  )|may not fit|interrupted")),
    ("32", re.compile(r"fits(?=:| into)|done(?= \d)|running(?= for)")),
)
"""Colour code and pattern of a line's first word."""


def print_lines(*lines: str, to: IO[str] | None = None) -> None:
    """Write lines to the standard output or to `to`, formatted for it. Raises no OSError."""
    to = lasting(to or sys.stdout)
    for line in lines:
        print("\n".join(fitted(line, to)), file=to, flush=True)


def fitted(text: str, to: IO[str] | None) -> list[str]:
    """Return a line as one line, or wrapped and coloured for a terminal."""
    text = printable(text)
    if not is_terminal(to):
        return [text]
    lines = wrapped(text, terminal_width(to))
    has_colours = not os.environ.get("NO_COLOR") and obeys_control_codes()  # no-color.org
    return [coloured(lines[0]), *lines[1:]] if has_colours else lines


def wrapped(text: str, width: int, hanging: int | None = None) -> list[str]:
    """Wrap a text between words. Further lines start at column `hanging`; None: where the text
    after the label starts. A word that is too wide has its own line."""
    if columns_of(text) <= width:
        return [text]
    if hanging is None:
        labels = [gap.end() for gap in GAP.finditer(text) if gap.end() <= width // 2]
        hanging = labels[-1] if labels else len(text) - len(text.lstrip()) + 2
    lines, line = [], ""
    for gap, word in _words(text, width - hanging):
        if line.strip() and columns_of(line + gap + word) > width:
            lines.append(line)
            line = " " * hanging + word
        else:
            line += gap + word
    return [*lines, line]


def coloured(line: str) -> str:
    """Return a line with its first word in colour, if it is a status word."""
    for colour, first in COLOURS:
        if match := first.match(line):
            return f"\x1b[{colour}m{match.group()}\x1b[0m{line[match.end() :]}"
    return line


def obeys_control_codes() -> bool:
    """Return whether the terminal supports control codes. A command that a notebook's cell starts
    has a terminal, but the notebook keeps each redraw of a line."""
    from_cell = any(os.environ.get(name) for name in CELL_VARIABLES)
    return os.environ.get("TERM") not in DUMB and not from_cell


def in_cell() -> bool:
    """Return whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


def is_terminal(to: IO[str] | None) -> bool:
    """Return whether a stream is an open terminal."""
    return to is not None and not to.closed and to.isatty()


def terminal_width(to: IO[str] | None) -> int:
    """Return the number of columns of a terminal; UNBOUNDED for other streams."""
    try:
        return os.get_terminal_size(to.fileno()).columns or UNBOUNDED if to else UNBOUNDED
    except (OSError, ValueError, AttributeError):
        return UNBOUNDED


def columns_of(text: str) -> int:
    """Return the columns that a text takes: some characters take two, some none."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def printable(text: str) -> str:
    """Return a text without control characters, which a file name may contain. A text longer than
    LONGEST_LINE loses its middle."""
    if len(text) > LONGEST_LINE:
        left_out = len(text) - 2 * KEPT_OF_LONG
        text = f"{text[:KEPT_OF_LONG]} … ({left_out:,} letters) … {text[-KEPT_OF_LONG:]}"
    return plain(text)


def json_line(value: Any) -> str:
    """Return a value as one line of JSON with unescaped letters. Control characters, also beyond
    ASCII, and direction marks are escaped, because a terminal may interpret them."""
    return escaped(json.dumps(value, ensure_ascii=False))


def escaped(text: str) -> str:
    """Return a text with unprintable characters escaped as in JSON: `\\u001b`."""
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)


def shortened(text: str, width: int) -> str:
    """Return a text of at most `width` columns; a cut text ends with `…`."""
    if columns_of(text) <= width:
        return text
    text = text[:width]  # bounds the loop: a long text may have characters without columns
    while text and columns_of(text) >= width:
        text = text[:-1]
    return f"{text.rstrip()}…"[:width]


def quoted(text: str, width: int = 60) -> str:
    """Return a user's text in quotes, cut to `width` columns."""
    return repr(shortened(text, width))


def _words(text: str, room: int) -> Iterator[tuple[str, str]]:
    """Yield the words of a text, each with the gap before it. Splits commands wider than `room`."""
    end = 0
    for match in COMMANDS.finditer(text):
        gap = text[end : match.start()]
        if columns_of(match.group()) <= room:
            yield gap, match.group()
        else:
            for word in match.group().split():
                yield gap, word
                gap = " "
        end = match.end()


BETWEEN = "  "


def table_lines(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    right: Collection[str] = (),
    indent: int = 0,
) -> list[str]:
    """Return the lines of a table. `right`: right-aligned columns. Cells that do not fit are
    wrapped between words."""
    cells = [tuple(columns), *map(tuple, rows)]
    room = terminal_width(sys.stdout) - indent - len(BETWEEN) * (len(columns) - 1)
    widths = _widths(list(zip(*cells, strict=True)), room)
    return [
        " " * indent + line
        for row in cells
        for line in _row(row, columns, widths, frozenset(right))
    ]


def _widths(columns: Sequence[Sequence[str]], room: int) -> list[int]:
    """Return the width of each column: that of its longest cell, if there is room. Otherwise shrink
    the columns whose height grows least, down to their longest word."""
    min_widths = [
        max(columns_of(word) for cell in c for word in cell.split() or [""]) for c in columns
    ]
    widths = [max(map(columns_of, column)) for column in columns]
    while sum(widths) > room:
        shrinkable = [at for at, width in enumerate(widths) if width > min_widths[at]]
        if not shrinkable:
            break
        heights = {
            at: max(len(wrapped(cell, widths[at] - 1, hanging=0)) for cell in columns[at])
            for at in shrinkable
        }
        widths[min(shrinkable, key=lambda at: (heights[at], -widths[at]))] -= 1
    return widths


def _row(
    row: Sequence[str], columns: Sequence[str], widths: Sequence[int], right: Collection[str]
) -> Iterator[str]:
    cells = [wrapped(text, width, hanging=0) for text, width in zip(row, widths, strict=True)]
    for line in zip_longest(*cells, fillvalue=""):
        padded = (
            " " * (width - columns_of(text)) + text
            if column in right
            else text + " " * (width - columns_of(text))
            for text, column, width in zip(line, columns, widths, strict=True)
        )
        yield BETWEEN.join(padded).rstrip()


MEMORY_STEP = 1 << 28
"""Maximum rounding step of a suggested memory limit in bytes: a quarter of a GiB."""


def duration(seconds: float) -> str:
    """Return a time as `8 s`, `3 min 20 s` or `2 h 05 min`."""
    total = round(seconds)
    if total < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{total} s"
    if total < 3600:
        return f"{total // 60} min {total % 60:02d} s"
    return f"{total // 3600} h {total % 3600 // 60:02d} min"


def pace(rate: float) -> str:
    """Return items per second as `3.2/s`, or slow rates as `2.5/min`."""
    return f"{rate:.1f}/s" if rate >= 0.1 else f"{60 * rate:.1f}/min"


def size(count: int) -> str:
    """Return a size as `512 B`, `3.4 MB` or `18.2 GB`, in powers of ten as for disks."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def gib(count: float) -> str:
    """Return a size as `2.84 GiB`, `310 MiB` or `12.1 MiB`, in powers of two as for memory."""
    if count >= (1 << 30) / 10:
        return f"{count / (1 << 30):.2f} GiB"
    return f"{count / (1 << 20):.{0 if count >= 100 << 20 else 1}f} MiB"


def clock(seconds: float) -> str:
    """Return a time in a video as `6:30.0` or `1:02:05.0`, as pages do."""
    tenths = round(10 * max(0.0, seconds))
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    shown = f"{hours}:{minutes:02d}" if hours else str(minutes)
    return f"{shown}:{rest // 10:02d}.{rest % 10}"


def rounded_up(count: int) -> int:
    """Round a memory limit up: by up to an eighth, at most a quarter of a GiB, to whole MiB."""
    step = min(max(1 << max(count.bit_length() - 4, 0), 1 << 20), MEMORY_STEP)
    return -(-count // step) * step


def written(count: int) -> str:
    """Return a limit from `rounded_up` in option syntax: `40MiB`, `13.25GiB`."""
    return f"{count >> 20}MiB" if count % MEMORY_STEP else f"{count / (1 << 30):g}GiB"
