"""One caption as a training example, and the content that it is about."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts.json_shapes import BYTES
from artifacts.regular_files import read_text

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One caption, with its medium and chunk."""

    path: Path
    """File of the medium."""
    caption: str
    start: float | None = None
    """Start of its chunk in seconds; None: the medium is one chunk."""
    end: float | None = None
    prompt: str = ""
    """Prompt of the caption; empty: the default one."""
    features: str = ""
    """Key of the features that it was made from; empty if unknown."""
    content: str = ""
    """Identity of the content that was captioned; empty if unknown."""
    medium: str = ""
    """Identity of the medium that its file was cut from, as far as the data state it."""
    is_cut: bool = False
    """Whether the token limit ended it, and no person wrote or accepted it."""
    line: int = 0
    """Line in the data; 0 if the caption is a file of its own."""

    @property
    def item(self) -> tuple[Any, ...]:
        """Return the identity of the item that has one caption."""
        return self.path, self.start, self.end, self.prompt

    @property
    def place(self) -> str:
        """Return where its caption stands, in the data."""
        return f"line {self.line}" if self.line else self.path.name


def item_of(row: Row) -> tuple[str, str]:
    """Return the medium of a row, by source and path, and its prompt."""
    return (
        f"{row.get('source')}\n{row.get('media_path')}",
        f"{row.get('name')}\n{row.get('prompt')}",
    )


def contents_in(path: Path) -> Mapping[str, str]:
    """Return the name of each medium of a run → the identity of the content that it read."""
    try:
        rows = [json.loads(line) for line in read_text(path, BYTES).split("\n") if line]
        # Data sets do not state the source.
        by_path = {f"{None}\n{r['media_path']}": str(r.get("content", "")) for r in rows}
        return by_path | {item_of(row)[0]: str(row.get("content", "")) for row in rows}
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return {}  # no run wrote the data
