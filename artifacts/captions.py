"""Values and JSON lines of captions and of failures."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from artifacts.files import write_text

ENCODER = json.JSONEncoder(ensure_ascii=False)
THINKING = re.compile(r"(<think>.*?)?</think>\s*", re.DOTALL)
"""What a model says before it answers; some templates open it for the model."""
Ended = Literal["stop", "length"]
"""How a caption ended: by itself; or cut, when it had as many tokens as it may have."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Caption:
    """One line of `captions.jsonl`: the caption of one chunk."""

    media_path: str
    """Path relative to the folder given, or the file's name; POSIX."""
    source: str
    """The argument that brought the file in."""
    start: float
    """Seconds of the medium's own time; 0 for an image."""
    end: float
    """Seconds of the medium's own time; 0 for an image."""
    caption: str
    model: str
    prompt: str
    precision: dict[str, str]
    """`vision` and `language`: what each half computed in."""
    frames: tuple[float, ...]
    """Times in seconds of the frames the model saw."""
    features: str
    """Key of the stored features."""
    tokens: int
    """How many tokens were generated."""
    ended: Ended
    """How the caption ended."""
    warnings: tuple[str, ...] = ()
    name: str = ""
    """Name of its prompt, where there are several."""
    fields: dict[str, Any] | None = None
    """What it says, by property, where it follows a schema."""
    original: str = ""
    """What the model said, where a person corrected it."""
    review: str = ""
    """Whether a person accepted or rejected it; empty where nobody did."""

    UNSAID: ClassVar = ("name", "fields", "original", "review")
    """Fields that a line has only where there is something in them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """One line of `failures.jsonl`: what could not be captioned, why, and what to do."""

    media_path: str
    source: str
    stage: str
    """The stage where it came to light: `sources` or a stage's name."""
    error: str
    """A stable word for programs, such as `missing` or `no-video`."""
    message: str
    hint: str


def ended_of(stored: Mapping[str, Any], limit: int) -> Ended:
    """Return how a stored caption of at most `limit` tokens ended. Older records do not say, and
    count as cut where they have them all."""
    told: Ended | None = stored.get("ended")
    return told or ("length" if stored["tokens"] >= limit else "stop")


def answer_in(words: str) -> str:
    """Return what a model answered without what it thought before; empty where it was thinking
    still."""
    answer = THINKING.sub("", words).strip()
    return "" if answer.startswith("<think>") else answer


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """Write one JSON object a line, in order; the file appears whole. Raises EnvironmentFault."""
    write_text(path, (ENCODER.encode(said_of(row)) + "\n" for row in rows))


def said_of(row: Any) -> dict[str, Any]:
    """Return the fields of a row by name, but for those that need not be said and are empty."""
    unsaid = getattr(row, "UNSAID", ())
    return {name: value for name, value in values_of(row).items() if value or name not in unsaid}


def values_of(row: Any) -> dict[str, Any]:
    """Return the fields of a row by name. `asdict` would copy what is in them and take thrice as
    long."""
    return {name: getattr(row, name) for name in row.__slots__}
