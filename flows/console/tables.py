"""Formats tables to fit the terminal."""

import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import zip_longest

from flows.console.lines import columns_of, terminal_width, wrapped

BETWEEN = "  "
"""Separator of columns."""


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
