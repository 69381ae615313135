"""Holds everything that handles requests while a server runs."""

import os
import time
from dataclasses import dataclass, field

from flows.job.prepare import Job
from flows.serving.captioning import Captioning
from flows.serving.config import ServeConfig
from flows.serving.decoders import Decoders
from flows.serving.embedding import PictureEmbedder
from flows.serving.half_worker import LOADING, WAITING, HalfWorker
from flows.serving.labelling import Labeller
from flows.serving.metrics import Metrics
from flows.serving.model_watch import ModelWatch
from flows.serving.residence import DeviceScheduler
from flows.serving.scratch import TempStore
from flows.serving.searching import ServedIndex
from flows.serving.text_embedding import TextEmbedder
from stages.process.memory import anonymous_bytes


@dataclass(kw_only=True, slots=True)
class Service:
    """The request handlers. A handler that the server was not started with is None."""

    config: ServeConfig
    metrics: Metrics
    scratch: TempStore
    residence: DeviceScheduler
    budget_bytes: int
    """Bytes that all halves together may take."""
    job: Job | None = None
    """That by which vectors are made."""
    pictures: PictureEmbedder | None = None
    texts: TextEmbedder | None = None
    labels: Labeller | None = None
    index: ServedIndex | None = None
    captions: Captioning | None = None
    halves: list[HalfWorker] = field(default_factory=list)
    decoders: list[Decoders] = field(default_factory=list)
    model: ModelWatch = field(default_factory=ModelWatch)
    busy: int = 0
    """Requests that are being answered."""
    draining: bool = False
    """Whether it is about to end."""
    ends: float = 0.0
    """Time by which it ends, once it is about to."""

    def drain(self, seconds: float) -> None:
        """Take nothing more, and end within so long."""
        if not self.draining:
            self.draining, self.ends = True, time.monotonic() + seconds

    @property
    def memory_bytes(self) -> int:
        """Return the memory of the server and of all that it started."""
        pids = [half.pid for half in self.halves]
        pids += [pid for each in self.decoders for pid in each.pids]
        return anonymous_bytes(os.getpid()) + sum(anonymous_bytes(pid) for pid in pids if pid)

    @property
    def seconds_left(self) -> float:
        """Return the time that halves have to end: a moment at the least."""
        return max(0.5, self.ends - time.monotonic())

    @property
    def queued(self) -> int:
        """Return how many works wait for a batch."""
        return sum(half.depth() for half in self.halves)

    def why_not_ready(self) -> str:
        """Return why requests would have to wait; empty where they would not."""
        if self.model.error is not None:
            return f"reading the model again: {self.model.error.message}"
        if self.draining:
            return "ending"
        if self.residence.held_by:
            return f"{self.residence.held_by} has the device"
        return next((f"loading {h.name}" for h in self.halves if h.state in (WAITING, LOADING)), "")
