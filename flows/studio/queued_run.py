"""One command in the list of runs of a studio, and its file, in which every field has a shape."""

import os
import re
import secrets
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

from artifacts.json_shapes import MapOf, anything, count, moment, read_json, text

AGAIN = "again"
"""Kind of a run that asks again about some captions of another."""
SUMMED_UP = ("learn", "sift", "export", "tune")
"""Kinds of runs whose last line says what came of them."""
QUEUED, STARTING, RUNNING = "queued", "starting", "running"
ENDED = ("done", "failed", "interrupted", "died")
ID = re.compile("[0-9a-f]{16}")


def lets_no_code_in(value: Any) -> bool:
    """Return whether a value has the words of a command that lets no foreign code run: that needs a
    person's word each time, which no file can give."""
    is_list = isinstance(value, list) and all(map(text, value))
    return is_list and not {"--trust-remote-code"} & {*takewhile("--".__ne__, value)}


SHAPE = {
    **dict.fromkeys(("out", "folder", "of", "start", "error"), text),
    "kind": lambda value: value in ("caption", "write", AGAIN, *SUMMED_UP),
    "words": lets_no_code_in,
    "id": lambda value: isinstance(value, str) and bool(ID.fullmatch(value)),
    "values": MapOf(anything),
    "about": [text],
    "state": lambda value: value in (QUEUED, STARTING, RUNNING, *ENDED),
    "pid": count,
    "began": lambda value: value == "" or moment(value),
}
"""Shape of a run in the file of a queue."""


@dataclass(slots=True, kw_only=True)
class QueuedRun:
    """One command of the queue."""

    kind: str
    """`caption`, `write`, `again`, or a command of SUMMED_UP."""
    out: str
    words: list[str]
    folder: str
    """Folder in which the command runs."""
    of: str = ""
    """Folder of the run whose captions it is about; empty: `out`."""
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    values: dict[str, Any] = field(default_factory=dict)
    """Values of the options that the page sent."""
    about: list[str] = field(default_factory=list)
    """Keys of the captions that get a second question."""
    state: str = QUEUED
    pid: int = 0
    start: str = ""
    """When its process started, as `start_of` returns it."""
    began: str = ""
    error: str = ""

    @property
    def about_out(self) -> Path:
        """Return the folder of the run whose captions it is about."""
        return Path(self.of or self.out)


def read_runs(path: Path) -> list[QueuedRun]:
    """Return the runs of a queue; none without its file. Raises EnvironmentFault."""
    if not os.path.lexists(path):
        return []
    hint = "Move it away; what runs have made is kept"
    found = read_json(path, {"runs": [SHAPE]}, hint)
    return [QueuedRun(**{name: run[name] for name in QueuedRun.__slots__}) for run in found["runs"]]
