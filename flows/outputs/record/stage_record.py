"""What `run.json` says of a stage: what it made, when its processes worked, and what they used."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from artifacts.disk.json_types import Count, Number, Text
from flows.core.pipelines import STAGES
from stages.process.events import StageOutcome

Point = tuple[Number, Count, Count]
"""Seconds, bytes of the host, bytes of the device."""
Span = tuple[Number, Number, Number]
"""Start and end of a process, in seconds of the run, and the seconds that its stage worked before
it."""

REWRITE_SECONDS = 2.0
"""Minimum seconds between two writes of the record during a run."""
SAMPLE_SECONDS = 65.0
"""Age limit, in seconds, of the samples from which the latest speed is computed."""
TIMELINE_POINTS = 7200
"""Maximum points of a stage's memory timeline; beyond it, pairs of neighbours are merged."""
SPANS = 1000
"""Maximum stage processes with a recorded start and end; beyond it, neighbours are merged."""
OVERLAP_NOTES = ("beside", "beside_ended")
"""Notes of a stage that later processes do not replace: beside which stage a process ran, and why
that ended early."""
KEPT_WARNINGS = 1000
"""Maximum warnings kept per stage; `captions.jsonl` has those of each caption."""


@dataclass(kw_only=True, slots=True)
class OnDevice:
    """What a stage that ran on several GPUs made on one of them."""

    items: Count = 0
    seconds: Number = 0.0
    peak_device_bytes: Count = 0


@dataclass(kw_only=True, slots=True)
class StageRecord:
    """The record of one stage. A stage may run several processes, one after the other."""

    name: Text
    items: Count = 0
    """Items that ended processes have made."""
    total: Count = 0
    """Items of the run, made or not, as far as is known."""
    before: Count = 0
    """Items that the store had before the run."""
    running: Count = 0
    """Items that a running process has made."""
    failed: Count = 0
    since: Number = 0.0
    """When the running process began, in seconds since the epoch; 0: none runs."""
    recent: list[tuple[Number, Count]] = field(default_factory=list)
    """Times of the last minute, and the items made by then."""
    latest: str = ""
    """File that it worked on last."""
    processes: Count = 0
    """Processes that have ended."""
    tokens: Count = 0
    seconds: Number = 0.0
    cpu_seconds: Number = 0.0
    peak_host_bytes: Count = 0
    peak_device_bytes: Count = 0
    baseline_before_bytes: Count = 0
    """Bytes of the device in use before the last process, and after it."""
    baseline_after_bytes: Count = 0
    attention: Text = ""
    precision: dict[Text, Text] = field(default_factory=dict)
    device: Text = ""
    """Device of the memory samples."""
    devices: dict[Text, OnDevice] = field(default_factory=dict)
    """What each device made, if several shared the stage."""
    spans: list[Span] = field(default_factory=list)
    """Of each ended process."""
    timeline: list[Point] = field(default_factory=list)
    """Memory of the ended processes, by seconds worked."""
    now: list[Point] = field(default_factory=list)
    """Memory of the running process."""
    warnings: list[Text] = field(default_factory=list)
    notes: dict[Text, Any] = field(default_factory=dict)
    """Facts that its last process has reported."""

    def __post_init__(self) -> None:
        """Raises ValueError for an unknown stage, and for a note of no number of bytes."""
        if self.name not in STAGES:
            raise ValueError(f"no stage is called {self.name!r:.40}")
        if not isinstance(self.notes.get("loaded_bytes", 0), int | float):
            raise ValueError("its notes.loaded_bytes is not a number")

    def done_of(self, total: int) -> int:
        """Return the items that this run and those before it made, at most `total`; 0: it is not
        known."""
        done = self.before + self.items + self.running
        return min(done, total) if total else done

    def begin(self, at: float) -> None:
        """Note that a process starts."""
        self.since, self.running, self.recent, self.now, self.device = at, 0, [], [], ""

    def count(self, made: int, at: float, device: str = "") -> None:
        """Note that the running process has made so many more items, on `device` if the stage runs
        on several."""
        if device:
            self.devices.setdefault(device, OnDevice()).items += made
        self.running += made
        if not self.recent or at - self.recent[-1][0] >= REWRITE_SECONDS:
            self.recent = [sample for sample in self.recent if sample[0] >= at - SAMPLE_SECONDS]
            self.recent.append((round(at, 1), self.items + self.running))

    def sample(self, seen: Mapping[str, Any]) -> None:
        """Note a memory sample of the running process, and update the peaks."""
        self.peak_host_bytes = max(self.peak_host_bytes, seen["peak_host_bytes"])
        self.peak_device_bytes = max(self.peak_device_bytes, seen["peak_device_bytes"])
        self.device = self.device or seen["device"]
        if seen["device"] != self.device:  # beside the process that is shown
            return
        self.now.append((seen["seconds"], seen["host_bytes"], seen["device_bytes"]))
        if len(self.now) > TIMELINE_POINTS:
            self.now = coarser(self.now)

    def add(self, outcome: StageOutcome, began: float, ended: float) -> None:
        """Add an ended process. The run began, and the process ended, at these seconds since the
        epoch."""
        last = self.timeline[-1:]
        # Start after the last point of the previous process, which may have sampled once more.
        offset = max(self.seconds, *(point[0] + 0.01 for point in last), 0.0)
        start = (self.since or ended - outcome.seconds) - began
        self.spans.append((max(0.0, round(start, 1)), round(ended - began, 1), round(offset, 2)))
        while len(self.spans) > SPANS:
            pairs = [self.spans[at : at + 2] for at in range(0, len(self.spans), 2)]
            self.spans = [(pair[0][0], pair[-1][1], pair[0][2]) for pair in pairs]
        self.processes += 1
        self.running, self.since, self.recent, self.now, self.latest = 0, 0.0, [], [], ""
        self.items += outcome.items
        self.tokens += outcome.tokens
        self.seconds += outcome.seconds
        self.cpu_seconds += outcome.cpu_seconds
        self.peak_host_bytes = max(self.peak_host_bytes, outcome.peak_host_bytes)
        self.peak_device_bytes = max(self.peak_device_bytes, outcome.peak_device_bytes)
        for device, part in outcome.devices.items():
            if part.items:
                of_device = self.devices.setdefault(device, OnDevice())
                of_device.seconds += part.seconds
                peak = max(of_device.peak_device_bytes, part.peak_device_bytes)
                of_device.peak_device_bytes = peak
        self.baseline_before_bytes = outcome.baseline_before_bytes
        self.baseline_after_bytes = outcome.baseline_after_bytes
        self.timeline += [(round(offset + t, 2), host, gpu) for t, host, gpu in outcome.timeline]
        while len(self.timeline) > TIMELINE_POINTS:
            self.timeline = coarser(self.timeline)
        self.warnings = [*self.warnings, *outcome.warnings][:KEPT_WARNINGS]
        of_overlap = {name: self.notes[name] for name in OVERLAP_NOTES if name in self.notes}
        self.notes = {**of_overlap, **outcome.notes}

    def curves(self) -> list[list[Point]]:
        """Return the memory points of each ended process, by the time of the run.

        The record has them by the working time of the stage. They are aligned with the end of a
        process, not its start, because it may have waited for the GPU before its first sample.
        """
        worked = self.seconds
        spans = self.spans or [(0.0, worked, 0.0)]
        last = max(worked, *(point[0] for point in self.timeline[-1:]), 0.0)
        ends = [*(span[2] for span in spans[1:]), last]
        curves: list[list[Point]] = [[] for _ in spans]
        at = 0
        for seconds, host, device in self.timeline:
            while at + 1 < len(spans) and seconds >= spans[at + 1][2]:
                at += 1
            start, end, _ = spans[at]
            moment = min(max(end - (ends[at] - seconds), start), end)
            curves[at].append((round(moment, 2), host, device))
        return [curve for curve in curves if curve]


def coarser(timeline: Sequence[Point]) -> list[Point]:
    """Return half as many points, each with the maximum of two."""
    pairs = [timeline[at : at + 2] for at in range(0, len(timeline), 2)]
    return [(pair[0][0], max(p[1] for p in pair), max(p[2] for p in pair)) for pair in pairs]
