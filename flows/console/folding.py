"""Ends lines that are longer than a terminal between two words, where the terminal would end them
anywhere; knows nothing of what they say."""

import os
import sys
from typing import IO, Any

ESCAPE = "\x1b"


class Folded:
    """A terminal whose long lines are folded. What moves the cursor is left as it is."""

    def __init__(self, to: IO[str]) -> None:
        self._to = to
        self._column = 0
        """Where the next letter is written."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._to, name)

    def write(self, text: str) -> int:
        self._to.write(text if ESCAPE in text or "\r" in text else self._folded(text))
        return len(text)

    def _folded(self, text: str) -> str:
        columns, column = self._columns(), self._column
        first, *more = text.split("\n")
        lines = [folded(first, columns, begun=column), *(folded(line, columns) for line in more)]
        found = "\n".join(lines)
        tail = found.rpartition("\n")[2]
        self._column = len(tail) + (0 if "\n" in found else column)
        return found

    def _columns(self) -> int:
        try:
            return os.get_terminal_size(self._to.fileno()).columns
        except (OSError, ValueError, AttributeError):
            return 0


def folded(line: str, columns: int, *, begun: int = 0) -> str:
    """Return a line with breaks in the places of spaces, so that none is longer than `columns`, of
    which `begun` are written already. A word that fits into no line stays whole, so that a path can
    be copied; what is indented stays so. 0 columns are no bound."""
    words = line.lstrip(" ")
    indent = " " * (len(line) - len(words))
    found, room = indent, columns - begun - len(indent)
    while columns and len(words) > room:
        place = words.rfind(" ", 0, max(room, 0) + 1)
        place = place if place > 0 else words.find(" ", max(room, 0))
        if place < 0:
            break
        found += f"{words[:place].rstrip()}\n{indent}"
        words, room = words[place:].lstrip(" "), columns - len(indent)
    return found + words


def fold_terminals() -> None:
    """Fold what this process writes to a terminal from now on."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and stream.isatty() and not isinstance(stream, Folded):
            setattr(sys, name, Folded(stream))
