"""The settings with which a server runs one half. Starts no process."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from flows.machine.launch import StageCall
from flows.planning.ladder import Ladder
from flows.planning.rungs import Rung
from flows.serving.model_watch import ModelWatch


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
