"""The work of a stage that stays: lines of JSON in a named pipe, told one after the other by who
started it; knows no stage.

A stage whose job names such a pipe keeps what it has loaded, and does what each line says until the
pipe is closed at the other end.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def lines_of(pipe: str) -> Iterator[Any]:
    """Yield each line that is told, as it comes, until no more can come."""
    # Without the pipe: it was closed before anything was told.
    with contextlib.suppress(FileNotFoundError), open(pipe, encoding="utf-8") as lines:
        yield from map(json.loads, lines)


class Telling:
    """The end of a pipe at which lines are told. The other end may die and be begun anew."""

    def __init__(self, path: Path) -> None:
        """Make a pipe. Raises OSError."""
        self.path = path
        os.mkfifo(path, 0o600)
        # For reading too, or opening it would wait for the stage to open its end.
        self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def tell(self, line: Any) -> None:
        """Tell one thing. A pipe holds 64 KiB, so little may be told before it is read."""
        left = memoryview(json.dumps(line).encode() + b"\n")
        while left:
            left = left[os.write(self._descriptor, left) :]

    def close(self) -> None:
        """End the stage's work, once it has read what was told."""
        with contextlib.suppress(OSError):
            self.path.unlink()  # before it is closed, or who opens it in between waits for ever
        os.close(self._descriptor)
