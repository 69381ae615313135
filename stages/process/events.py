"""The events by which a stage's process reports to its parent, their sender, the time in which it
had nothing to do, and the stage's outcome.

Each event is one line of JSON: the name of its class, and its fields. Libraries print to stdout, so
events travel on a file descriptor of their own.
"""

import json
import math
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

from artifacts.disk.faults import fault_of, is_full, removed_fault
from artifacts.disk.json_records import read_record
from artifacts.disk.json_shapes import Json
from artifacts.disk.regular_files import open_below
from artifacts.schema import MediaIndex

UNSUPPORTED = "unsupported"
"""Kind of failure of an item whose own settings are not supported."""
TOO_LONG = "too-long"
"""Kind of failure of an item whose prompt, images and caption exceed the model's context."""
CUT = "cut"
"""Kind of failure of a JSON answer that reached its token limit."""
SUSPECTED = "not-finite?"
"""Kind of failure of an item whose numbers were not seen, and that has no text up to the limit."""
NO_ROOM = "no-room"
"""Kind of failure of a request whose result does not fit on the disk."""
WAITS_FOR_DEVICE = "waits_for_device"
"""Note of a process that another job keeps from its GPU."""
NOT_ANSWERED = "not-answered"
"""Kind of failure of a client's request that its stage has forgotten."""
NOT_STORED = "not-stored"
"""Kind of failure of a request whose result cannot be stored for another reason."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Total:
    """The number of items that the stage will publish."""

    items: int
    earlier: int = 0
    """Number of those that it was sent in earlier messages, and has made; not in `items`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answered:
    """These items are done: their records are on disk, and will not be made again."""

    keys: tuple[str, ...] = ("",)
    """Their keys; none: all records of `media` are on disk."""
    device: str = "cpu"
    """`cpu` or `cuda:N`: the device of the process."""
    label: str = ""
    """Name of the last of them, for display."""
    tokens: int = 0
    """Tokens of all of them."""
    media: str = ""
    """Digest of the medium that these chunks were cut from; empty: the keys name the items."""
    index: MediaIndex | None = None
    """Index of the medium, if a client's file was cut whole."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Returned:
    """These items of a run are left to other processes: their records are there, another run makes
    them, or the model raised on them before it succeeded on any."""

    keys: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionProgress:
    """A caption is in progress or complete; sent by a long-running worker."""

    key: str
    caption: str
    """The text so far."""
    tokens: int
    ended: str = ""
    """Finish reason; empty while the caption is generated."""
    prompt_tokens: int = 0
    """Tokens of the prompt, image tokens included; 0 while the caption is generated, or if
    unknown."""
    stopped: bool = False
    """Whether a stop string ended the caption."""
    first: dict[str, Any] = field(default_factory=dict)
    """How probable tokens and labels were as the first token, if that was requested
    (stages/decode/first_token.py)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MediumOpened:
    """A medium is opened: if the process dies from now on, this medium may be the cause."""

    media: str
    """Content digest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MediumClosed:
    """A medium was closed."""

    media: str
    """Content digest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failed:
    """One medium, or one request of a client, cannot be used; the others can."""

    media: str
    """Content digest; in the encode stage, the cache key of a chunk's features; of a request, the
    key of its result."""
    kind: str
    """A stable word for programs."""
    message: str
    hint: str

    @property
    def reason(self) -> dict[str, str]:
        return {"kind": self.kind, "message": self.message, "hint": self.hint}


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchShrunk:
    """A batch of `failed` items did not fit; `batch` is the largest size from now on."""

    batch: int
    failed: int
    error: str
    block: int = 0
    """Largest number of items per block of batches from now on; 0: no blocks are used."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TooLarge:
    """An item does not fit even alone, while other items do."""

    key: str
    wanted_bytes: int
    """Size of the failed allocation in bytes; 0: unknown."""
    error: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Warned:
    """A warning for the user; the stage continues."""

    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class MemorySample:
    """Current and peak memory of the process, in bytes, and a sign that it is alive."""

    device: str
    """`cpu` or `cuda:N`: the device of the process."""
    seconds: float
    """Seconds since the process started."""
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
    """The stage failed."""

    type: str = ""
    """Name of the error class; `OutOfMemory` whatever a library calls it."""
    message: str = ""
    hint: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageEnded:
    """The stage ended, successfully or after an error."""

    seconds: float
    cpu_seconds: float
    peak_host_bytes: int
    peak_device_bytes: int
    timeline: list[Any] = field(default_factory=list)
    """Two samples per second: seconds, bytes of the host, bytes of the device."""


Event = (
    Total | Answered | Returned | CaptionProgress | MediumOpened | MediumClosed
    | Failed | BatchShrunk | TooLarge
    | Warned | MemorySample | StageNotes | StageError | StageEnded
)  # fmt: skip
EVENT_CLASSES: Mapping[str, type[Any]] = {kind.__name__: kind for kind in get_args(Event)}
"""Name of an event's class, which begins its line → the class."""


def line_of(event: Event) -> str:
    fields = event.values if isinstance(event, StageNotes) else asdict(event)
    return json.dumps({"event": type(event).__name__, **fields}) + "\n"


def event_of(line: str) -> Event | None:
    """Return the event of a JSON line; None if the death of its writer cut it off."""
    try:
        fields = json.loads(line)
        event_class = EVENT_CLASSES[fields.pop("event")]
        return StageNotes(fields) if event_class is StageNotes else read_record(event_class, fields)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def answered_keys(event: Event) -> tuple[str, ...]:
    """Return the keys of the items to which an event is the answer."""
    match event:
        case Answered():
            return event.keys or (event.media,)
        case Returned():
            return event.keys
        case Failed():
            return (event.media,)
        case TooLarge():
            return (event.key,)
        case CaptionProgress() if event.ended:
            return (event.key,)
    return ()


class IdleTime:
    """How long a stage that is sent its work had nothing to do: its reader waited for the next
    message, and its computation for the reader."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._since = 0.0
        """When the computation began to wait; infinite while it computes."""

    def begin(self) -> None:
        """Note that the computation waits from now on."""
        self._since = time.monotonic()

    def end(self) -> None:
        """Note that it computes from now on."""
        self._since = math.inf

    def add(self, began: float) -> None:
        """Count the time since the reader `began` to wait, as far as the computation waits, too."""
        self.seconds += max(0.0, time.monotonic() - max(began, self._since))


class EventReporter:
    """The child's end of the event pipe; safe to use from several threads.

    Each published item is also written to an append-only journal, which outlives both processes. A
    key that appears there twice was computed twice.
    """

    def __init__(self, descriptor: int, journal: Path | None = None, device: str = "cpu") -> None:
        self._descriptor = descriptor
        self._device = device
        self._journal = journal
        self._lock = threading.Lock()
        self.idle = IdleTime()
        self.on_answer: Callable[[Sequence[str]], None] = lambda keys: None
        """Called before each event with the keys that it answers, which may be none."""

    def total(self, items: int, earlier: int = 0) -> None:
        self.send(Total(items=items, earlier=earlier))

    def answered(
        self,
        *keys: str,
        label: str = "",
        tokens: int = 0,
        media: str = "",
        index: MediaIndex | None = None,
    ) -> None:
        """Report items whose records are on disk, or without keys a medium that is complete."""
        if self._journal is not None and keys:
            lines = [json.dumps({"time": round(time.time(), 3), "key": key}) for key in keys]
            self._note(self._journal, "\n".join(lines))
        answer = Answered(
            keys=keys, device=self._device, label=label, tokens=tokens, media=media, index=index
        )
        self.send(answer)

    def returned(self, keys: Iterable[str]) -> None:
        if keys := tuple(keys):
            self.send(Returned(keys=keys))

    def _note(self, journal: Path, line: str) -> None:
        try:
            file = open_below(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            with self._lock, os.fdopen(file, "a", encoding="utf-8") as lines:
                lines.write(line + "\n")
        except FileNotFoundError as error:
            raise removed_fault(journal.parent) from error
        except OSError as error:
            raise fault_of(error, journal.parent) from error

    def begin(self, media: str) -> None:
        self.send(MediumOpened(media=media))

    def done(self, media: str) -> None:
        self.send(MediumClosed(media=media))

    def failure(self, media: str, kind: str, message: str, hint: str) -> None:
        self.send(Failed(media=media, kind=kind, message=message, hint=hint))

    def not_stored(self, keys: Iterable[str], error: Exception) -> None:
        """Answer clients whose results cannot be stored for this error."""
        traceback.print_exception(error)
        self.warning(f"results cannot be stored: {error}")
        kind, message = NOT_STORED, "the server cannot store the result"
        if is_full(error):
            kind, message = NO_ROOM, "the server has no room for the result"
        for key in keys:
            self.failure(key, kind, message, "Ask again later")

    def batch_shrunk(self, batch: int, *, failed: int, error: str, block: int = 0) -> None:
        self.send(BatchShrunk(batch=batch, failed=failed, error=error, block=block))

    def warning(self, text: str) -> None:
        self.send(Warned(text=text))

    def note(self, **values: Json) -> None:
        """Report facts about the stage for `run.json`, such as the attention implementation."""
        self.send(StageNotes(values))

    def send(self, event: Event) -> None:
        """Write an event to the pipe, after `on_answer` has seen the keys that it answers."""
        self.on_answer(answered_keys(event))
        line = memoryview(line_of(event).encode())
        with self._lock:
            while line:
                line = line[os.write(self._descriptor, line) :]


@dataclass(kw_only=True, slots=True)
class StageOutcome:
    """The result of one stage process, as `run.json` records it."""

    name: str
    items: int = 0
    tokens: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_host_bytes: int = 0
    peak_device_bytes: int = 0
    baseline_before_bytes: int = 0
    baseline_after_bytes: int = 0
    timeline: list[Any] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    failures: list[Failed] = field(default_factory=list)
    error: StageError | None = None
    too_large: list[TooLarge] = field(default_factory=list)
    answered: set[str] = field(default_factory=set)
    """Keys of the items that a run sent to the process and that have an answer."""
    open_media: set[str] = field(default_factory=set)
    """Media, by content digest, that were open when the process ended."""
    devices: "dict[str, StageOutcome]" = field(default_factory=dict)
    """Device → outcome of the process on it, if several processes shared the work."""
