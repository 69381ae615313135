"""The settings with which a server runs one half, and the results that it reads. Starts no
process."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from artifacts.errors import ModelChanged, PenstockError
from flows.machine.launch import StageCall
from flows.planning.ladder import Ladder
from flows.planning.rungs import Rung
from flows.serving.refusals import HttpRefusal, unavailable
from stages.process.events import Event, Published

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedAnswers:
    """Results of a half, ready to be returned to clients."""

    answers: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class LostAnswers:
    """Results of a half that could not be read."""

    keys: Sequence[str]
    why: HttpRefusal


class ModelWatch:
    """The model files of a service, and whether its halves found them changed when loading."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        """Set when the service must not answer any more."""
        self.error: ModelChanged | None = None
        """The detected change."""
        self.was_loaded = False
        """Whether a half was loaded from the files that the service was planned with."""

    def failed(self, error: PenstockError) -> bool:
        """Note that a half failed to load. Return whether its model files changed."""
        if not isinstance(error, ModelChanged):
            return False
        self.error = self.error or error
        self.changed.set()
        return True


@dataclass(frozen=True, kw_only=True, slots=True)
class HalfWorkerSpec:
    """How one half is run, and how its results are read."""

    name: str
    ladder: Ladder
    peak_bytes: Callable[[Rung], int]
    """Planned memory in bytes of a fallback rung."""
    call: Callable[[Rung, str, int], StageCall]
    """Returns the stage call for a rung, a pipe and a memory budget."""
    answers: Callable[[Iterable[str]], dict[str, Any]]
    """Returns the results of published keys."""
    max_batch: int
    """Requested batch size; 0: what fits."""
    item_weight: int
    """Planned weight of one request."""
    wait_seconds: float
    withdraws: bool = False
    """Whether the process can stop working on a withdrawn request."""
    idle_seconds: float
    """Seconds without requests after which the half leaves the device."""
    model: ModelWatch = field(default_factory=ModelWatch)
    """Is notified when the half's files have changed."""

    def read(self, event: Event) -> Event | PublishedAnswers | LostAnswers:
        """Return the results of published records, and other events unchanged. It runs on the
        thread that receives the events: the event loop reads no file."""
        if not isinstance(event, Published):
            return event
        self.ladder.note_success(self.name)
        try:
            return PublishedAnswers(answers=self.answers(event.keys))
        except Exception as error:  # a store can fail in many ways; the thread must go on
            log.warning("%s: results cannot be read: %s", self.name, error)
            why = unavailable("the result cannot be read", "Ask again")
            return LostAnswers(keys=event.keys, why=why)
