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
    """How one half is run, and how its events are read."""

    name: str
    ladder: Ladder
    peak_bytes: Callable[[Rung], int]
    """Bytes that it takes on a rung, as planned."""
    call: Callable[[Rung, str, int], StageCall]
    """Rung, pipe and budget → the call of its process."""
    answers: Callable[[Iterable[str]], dict[str, Any]]
    """Keys that it has published → what is answered."""
    most: int
    """Most works of a batch that are asked for; 0: what fits."""
    weight: int
    """Weight of the works that a batch is planned of, each."""
    wait_seconds: float
    withdraws: bool = False
    """Whether its process leaves off what is withdrawn while it is at it."""
    idle_seconds: float
    """Seconds without work after which it leaves the device."""
    model: ModelWatch = field(default_factory=ModelWatch)
    """What is told when the half's files changed."""
