"""Values and JSON lines of captions and of failures."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from artifacts.files import write_text

ENCODER = json.JSONEncoder(ensure_ascii=False)
Ended = Literal["stop", "length"]
"""How a caption ended: by itself, or cut at its token limit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Caption:
    """One line of `captions.jsonl`: the caption of one chunk."""

    media_path: str
    """Path relative to the given folder, or the file's name; POSIX."""
    source: str
    """The command-line argument that included the file."""
    start: float
    """Seconds of the medium's own time; 0 for an image."""
    end: float
    """Seconds of the medium's own time; 0 for an image."""
    caption: str
    model: str
    prompt: str
    precision: dict[str, str]
    """Precision of each half: `vision` and `language`."""
    frames: tuple[float, ...]
    """Times in seconds of the frames that the model got."""
    features: str
    """Key of the stored features."""
    tokens: int
    """Number of generated tokens."""
    ended: Ended
    """How the caption ended."""
    logprob: float | None = None
    """Mean log-probability of its tokens by raw logits, end token included; None: unknown, as for
    a correction without a score."""
    margin: float | None = None
    """Least margin of a token: its raw logit minus the largest of any other token."""
    margin_at: int | None = None
    """Where the token with the least margin begins: characters of the text without additions."""
    warnings: tuple[str, ...] = ()
    name: str = ""
    """Name of its prompt, if there are several."""
    fields: dict[str, Any] | None = None
    """Values by property, if it follows a schema."""
    original: str = ""
    """The model's caption, if a user corrected it."""
    review: str = ""
    """Whether a user accepted or rejected it; empty: not reviewed."""

    OMIT_IF_EMPTY: ClassVar = ("name", "fields", "original", "review")
    """Fields that are left out of a line when empty."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """One line of `failures.jsonl`: an item that failed, why, and what to do."""

    media_path: str
    source: str
    stage: str
    """The stage that failed: `sources` or a stage's name."""
    error: str
    """A stable identifier for programs, such as `missing` or `no-video`."""
    message: str
    hint: str


CONFIDENCE = ("logprob", "margin", "margin_at")
"""Fields that say how sure the model was."""


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """Write one JSON object per line, atomically. Raises EnvironmentFault."""
    write_text(path, json_lines(rows))


def json_lines(rows: Iterable[Any]) -> Iterator[str]:
    """Yield the line of each row."""
    return (ENCODER.encode(fields_of_row(row)) + "\n" for row in rows)


def fields_of_row(row: Any) -> dict[str, Any]:
    """Return the fields of a row by name, without the optional ones that are empty."""
    optional = getattr(row, "OMIT_IF_EMPTY", ())
    return {name: value for name, value in values_of(row).items() if value or name not in optional}


def values_of(row: Any) -> dict[str, Any]:
    """Return the fields of a row by name, without copying values. `asdict` copies and takes three
    times as long."""
    return {name: getattr(row, name) for name in row.__slots__}
