"""One caption as a training example."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One caption, with its medium and chunk."""

    path: Path
    """File of the medium."""
    caption: str
    start: float | None = None
    """Seconds at which its chunk begins; None: the medium is one chunk."""
    end: float | None = None
    prompt: str = ""
    """Question that it answers; empty: the usual one."""
    features: str = ""
    """Key of the features that it was made of; empty where the data does not name it."""
    line: int = 0
    """Where it stands in the data; 0 of one that is a file."""

    @property
    def item(self) -> tuple[Any, ...]:
        """Return what has one caption."""
        return self.path, self.start, self.end, self.prompt
