"""Holds everything that handles requests while a server runs."""

import time
from dataclasses import dataclass, field

from flows.job.prepare import Job
from flows.serving.batching import DeviceScheduler
from flows.serving.captioning import Captioning
from flows.serving.config import ServeConfig
from flows.serving.decoders import Decoders
from flows.serving.embedding import Labeller, MediumEmbedder, TextEmbedder
from flows.serving.half_worker import LOADING, WAITING, HalfWorker, ModelWatch
from flows.serving.metrics import Metrics
from flows.serving.record_cache import TempStore
from flows.serving.searching import ServedIndex


@dataclass(kw_only=True, slots=True)
class Service:
    """The request handlers. Handlers that the server was not configured with are None."""

    config: ServeConfig
    metrics: Metrics
    temp_store: TempStore
    scheduler: DeviceScheduler
    budget_bytes: int
    """Memory budget in bytes of all halves together."""
    job: Job | None = None
    """The embedding job."""
    media_embedder: MediumEmbedder | None = None
    texts: TextEmbedder | None = None
    labels: Labeller | None = None
    index: ServedIndex | None = None
    captions: Captioning | None = None
    halves: list[HalfWorker] = field(default_factory=list)
    decoders: list[Decoders] = field(default_factory=list)
    model: ModelWatch = field(default_factory=ModelWatch)
    busy: int = 0
    """Number of requests in progress."""
    draining: bool = False
    """Whether it is shutting down."""
    ends: float = 0.0
    """Time by which the shutdown ends."""

    def drain(self, seconds: float) -> None:
        """Accept no more requests, and shut down within `seconds`."""
        if not self.draining:
            self.draining, self.ends = True, time.monotonic() + seconds

    @property
    def seconds_left(self) -> float:
        """Return the time left for halves to end, at least 0.5 s."""
        return max(0.5, self.ends - time.monotonic())

    @property
    def queued(self) -> int:
        """Return the number of requests that wait for a batch."""
        return sum(half.depth() for half in self.halves)

    def why_not_ready(self) -> str:
        """Return why requests would have to wait; empty if they would not."""
        if self.model.error is not None:
            return f"reloading the model: {self.model.error.message}"
        if self.draining:
            return "shutting down"
        if self.scheduler.held_by:
            return f"the device is used by {self.scheduler.held_by}"
        return next((f"loading {h.name}" for h in self.halves if h.state in (WAITING, LOADING)), "")
