"""The events by which a stage's process reports to its parent.

Each event is one line of JSON: a word for its class, and its fields. Both ends share these classes,
so their formats cannot differ.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from artifacts.schema import MediaIndex
from stages.process.job import parse_job

UNSUPPORTED = "unsupported"
"""Kind of the failure of an item whose own settings cannot be followed."""
TOO_LONG = "too-long"
"""Kind of the failure of an item whose prompt, pictures and caption exceed the model's context."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Total:
    """The number of items that the stage will publish."""

    items: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """An item is on disk and will not be made again."""

    key: str = ""
    label: str = ""
    tokens: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """These items entered the store together; a long-running worker sends it instead of one event
    per item."""

    keys: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionProgress:
    """A caption is in progress or complete; sent by a long-running worker."""

    key: str
    caption: str
    """All of it so far."""
    tokens: int
    ended: str = ""
    """How it ended; empty while it is said."""
    prompt_tokens: int = 0
    """Tokens of the prompt, those of pictures among them; 0 while it is said, or where nobody
    counted them."""
    stopped: bool = False
    """Whether a stop string ended it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MediumIndexed:
    """A long-running worker has read a medium, and its frames are in the store."""

    media: str
    """Content digest."""
    index: MediaIndex


@dataclass(frozen=True, kw_only=True, slots=True)
class MediumOpened:
    """A medium is opened: if the process dies from now on, this medium may be the cause."""

    media: str
    """Content digest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MediumClosed:
    """A medium is closed again."""

    media: str
    """Content digest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failed:
    """One medium cannot be used; the others can."""

    media: str
    """Content digest; of the encode stage, the key of a chunk's features."""
    kind: str
    """A stable word for programs."""
    message: str
    hint: str


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchShrunk:
    """A batch of `failed` items did not fit; from now on this is the largest size."""

    batch: int
    failed: int
    error: str
    block: int = 0
    """The same number for batches that go through together; 0: there are none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TooLarge:
    """An item does not fit even alone, while others do."""

    key: str
    wanted_bytes: int
    """Bytes that could not be had for it; 0: unknown."""
    error: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Warned:
    """A warning for the user that stops nothing."""

    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class MemorySample:
    """The current and the peak memory of the process, in bytes. It is also a sign of life."""

    seconds: float
    """Seconds since the process began."""
    host_bytes: int
    device_bytes: int
    peak_host_bytes: int
    peak_device_bytes: int


@dataclass(frozen=True, slots=True)
class StageNotes:
    """Facts about the stage for `run.json`, by name."""

    values: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class StageError:
    """The stage ends with an error."""

    type: str = ""
    """Name of its class; `OutOfMemory` whatever a library calls it."""
    message: str = ""
    hint: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageEnded:
    """The stage ends, in order or after an error."""

    seconds: float
    cpu_seconds: float
    peak_host_bytes: int
    peak_device_bytes: int
    timeline: list[Any] = field(default_factory=list)
    """Twice a second: seconds, bytes of the host, bytes of the device."""


Event = (
    Total | Item | Published | CaptionProgress | MediumIndexed | MediumOpened | MediumClosed
    | Failed | BatchShrunk | TooLarge
    | Warned | MemorySample | StageNotes | StageError | StageEnded
)  # fmt: skip
EVENT_CLASSES: Mapping[str, type[Any]] = {
    "total": Total,
    "item": Item,
    "published": Published,
    "medium_read": MediumIndexed,
    "words": CaptionProgress,
    "begin": MediumOpened,
    "done": MediumClosed,
    "failure": Failed,
    "rung": BatchShrunk,
    "too_large": TooLarge,
    "warning": Warned,
    "memory": MemorySample,
    "error": StageError,
    "end": StageEnded,
}
"""Word in a line → its class."""
NOTE = "note"
EVENT_WORDS = {kind: word for word, kind in EVENT_CLASSES.items()}


def line_of(event: Event) -> str:
    """Return the line that tells of an event."""
    if isinstance(event, StageNotes):
        return json.dumps({"event": NOTE, **event.values}) + "\n"
    return json.dumps({"event": EVENT_WORDS[type(event)], **asdict(event)}) + "\n"


def event_of(line: str) -> Event | None:
    """Return the event that a line tells of. None where it was cut off by the death of who wrote
    it."""
    try:
        values = json.loads(line)
        word = values.pop("event")
        if word == NOTE:
            return StageNotes(values)
        event: Event = parse_job(EVENT_CLASSES[word], values)
        return event
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
