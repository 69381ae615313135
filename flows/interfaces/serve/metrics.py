"""Counts server activity for Prometheus and for the page's plots."""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from stages.process.events import MemorySample, StageNotes
from stages.process.output_streams import failed_writes

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
PLOTTED_ROUTES = ("/v1/label", "/v1/embed", "/v1/caption", "/v1/search", "/v1/chat", "refused")
"""Routes shown in plots. An open page polls the other routes every second."""
MAX_POINTS = 600
"""Seconds of history that the page can request."""
MAX_LATENCIES = 4096
"""Largest number of latencies per second that percentiles are computed from."""


@dataclass(kw_only=True, slots=True)
class Second:
    """The counts of one second."""

    requests: int = 0
    refused: int = 0
    failed: int = 0
    batches: int = 0
    pictures: int = 0
    latencies: list[float] = field(default_factory=list)


class HalfMetrics:
    """The counts of one half."""

    def __init__(self, metrics: "Metrics", name: str) -> None:
        self._metrics = metrics
        self._queue = metrics.queue_seconds.labels(name)
        self._sizes = metrics.batch_size.labels(name)
        self.batch_seconds = metrics.batch_seconds.labels(name)
        self._memory = metrics.memory_bytes.labels(name)
        self._budget = metrics.budget_bytes.labels(name)
        self._name = name
        self._imports: int | None = None
        self.memory_bytes = 0
        """Device memory of its process in bytes; on the CPU, host memory beyond its imports."""

    def batch_sent(self, size: int, waited: Sequence[float]) -> None:
        """Count a batch sent to the half."""
        self._sizes.observe(size)
        for seconds in waited:
            self._queue.observe(seconds)
        self._metrics.second.batches += 1
        self._metrics.second.pictures += size

    def on_event(self, event: MemorySample | StageNotes, planned: int) -> None:
        """Record the memory of its process next to the planned number of bytes."""
        if isinstance(event, StageNotes):
            self._imports = event.values.get("loaded_bytes", self._imports)
        elif self._imports is not None:  # None: it is still importing
            self._set(event.device_bytes or max(0, event.host_bytes - self._imports), planned)

    def ended(self) -> None:
        """Reset the memory after its process ended."""
        self._imports = None
        self._set(0, 0)

    def _set(self, taken: int, planned: int) -> None:
        self.memory_bytes = taken
        self._memory.set(taken)
        self._budget.set(planned)

    def restarted(self, why: str) -> None:
        """Count a process that ended on its own."""
        self._metrics.restarts.labels(self._name, why).inc()


class Metrics:
    """The counts of one server."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        counter, gauge = partial(Counter, registry=registry), partial(Gauge, registry=registry)
        seconds = partial(Histogram, buckets=SECONDS, registry=registry)
        self._requests = counter("penstock_requests", "requests answered", ["route", "status"])
        what = "from the first byte of a request to the last of its answer"
        self._latency = seconds("penstock_request_seconds", what, ["route"])
        self.refused = counter("penstock_refused", "requests refused unread", ["why"])
        self.store_hits = counter("penstock_store_hits", "answers from the store")
        self.restarts = counter("penstock_restarts", "processes that ended", ["half", "why"])
        self.queue_seconds = seconds("penstock_queue_seconds", "wait for a batch", ["half"])
        self.batch_size = Histogram(
            "penstock_batch_size", "works of a batch", ["half"], buckets=SIZES, registry=registry
        )
        self.batch_seconds = seconds("penstock_batch_seconds", "time of a batch", ["half"])
        what = "memory of a half's process"
        self.memory_bytes = gauge("penstock_memory_bytes", what, ["half"])
        what = "memory that a half is planned to take"
        self.budget_bytes = gauge("penstock_budget_bytes", what, ["half"])
        self.queue_depth = gauge("penstock_queue_depth", "works that wait", ["half"])
        what = "writes of the log that failed"
        gauge("penstock_log_errors", what).set_function(failed_writes)
        self.second = Second()
        """Counts since the last point."""
        self._points: deque[tuple[float, dict[str, float | None]]] = deque(maxlen=MAX_POINTS)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count a response."""
        self._requests.labels(route, str(status)).inc()
        self._latency.labels(route).observe(seconds)
        if not any(route.startswith(prefix) for prefix in PLOTTED_ROUTES):
            return
        second = self.second
        second.requests += 1
        second.refused += status in (429, 503)
        second.failed += status >= 500 and status != 503
        if status < 400 and len(second.latencies) < MAX_LATENCIES:
            second.latencies.append(seconds)

    def point(self, queued: int, memory: int, budget: int) -> None:
        """Add a point, one second long, to the page's plots."""
        done, self.second = self.second, Second()
        ranked = sorted(done.latencies)
        now = round(time.time(), 2)
        point = {
            "time": now,
            "requests": done.requests,
            "refused": done.refused,
            "failed": done.failed,
            "p50": _at(ranked, 0.5),
            "p99": _at(ranked, 0.99),
            "batches": done.batches,
            "pictures": done.pictures,
            "queued": queued,
            "memory_bytes": memory,
            "budget_bytes": budget,
        }
        self._points.append((now, point))

    def points(self, since: float) -> list[dict[str, float | None]]:
        """Return the points after a time."""
        return [point for at, point in self._points if at > since]

    def text(self) -> bytes:
        """Return all metrics in Prometheus text format."""
        return generate_latest(self._registry)


def _at(ranked: Sequence[float], share: float) -> float | None:
    return round(ranked[min(len(ranked) - 1, int(share * len(ranked)))], 4) if ranked else None
