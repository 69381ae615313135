"""Prints the first captions of a finished run."""

import json
import sys
from contextlib import suppress
from itertools import islice
from pathlib import Path, PurePath

from artifacts.edits import REJECTED
from flows.console.lines import escaped, shortened, terminal_width

SHOWN = 3
"""Number of media whose first caption is printed."""
SEARCHED = 100
"""Lines of `captions.jsonl` that are searched for them."""


def first_captions(out: Path) -> list[str]:
    """Return one line for each of the first media: its name and its first caption that was not
    rejected, cut at the terminal's width."""
    found: dict[str, str] = {}
    with (
        suppress(OSError, ValueError),
        open(out / "captions.jsonl", encoding="utf-8") as file,
    ):
        for row in map(json.loads, islice(file, SEARCHED)):
            if row.get("review") != REJECTED and len(found) < SHOWN:
                found.setdefault(row["media_path"], row["caption"])
    width = terminal_width(sys.stdout)
    return [_line(path, caption, width) for path, caption in found.items()]


def _line(path: str, caption: str, width: int) -> str:
    name = shortened(escaped(PurePath(path).name), width // 3)
    return shortened(f"  {name}: {escaped(' '.join(caption.split()))}", width)
