"""Sets tables for people, as wide as what they are read on; knows nothing of what is in them."""

import io
import os
import sys
from collections.abc import Iterable, Sequence

UNBOUNDED = 1000
"""Columns of what is no terminal: lines of a log are never broken."""


def table_lines(columns: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> list[str]:
    """Return the lines of a table whose first and last columns, `left` of each, begin at the left.
    Where there is no room, cells go on in the next line, between words."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for at, column in enumerate(columns):
        middle = left <= at < len(columns) - left
        table.add_column(Text(column), justify="right" if middle else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    written = io.StringIO()
    Console(file=written, width=terminal_width(), color_system=None).print(table)
    return [line.rstrip() for line in written.getvalue().splitlines()]


def terminal_width() -> int:
    """Return the columns of the terminal that is written to."""
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or UNBOUNDED
    except (OSError, ValueError, AttributeError):
        return UNBOUNDED
