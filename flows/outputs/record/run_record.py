"""What `run.json` says: a run's plan, progress and costs. It is a report; resuming never depends on
it.

It keeps a short entry of each run into a folder that made something. An entry has up to KEYS keys
of the items that its run needed. It is current while one of them is among the keys of the latest
run: a run with another prompt, model or media neither counts the work of the others nor loses it.
"""

import os
import socket
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from artifacts.disk.json_types import Count, Number, Text
from flows.core.job.plan_record import PlanRecord, RungRecord
from flows.core.machine.versions import now, seconds_of, versions
from flows.core.media.output_rows import FailureRow
from flows.core.options.training import CommandRecord
from flows.outputs.record.stage_record import Point, StageRecord, coarser

RUN_RECORD = "run.json"
"""File of the record, in the folder of a run."""
NAMED_FAILURES = 20
"""Maximum failures in the record; `failures.jsonl` has all of them when the run ends."""
RUNS = 50
"""Maximum entries: beyond it, one that is not current goes, or else the two oldest are merged."""
POINTS = 200
"""Maximum points of an entry's timeline, all stages together."""
RUNGS = 20
"""Maximum rungs of an entry; the first ones go."""
KEYS = 8
"""Maximum keys of an entry."""
State = Literal["running", "done", "failed", "interrupted", "died"]
"""State of a run. A record says `running` of one that was killed, which is read as `died`."""
ENDED: frozenset[State] = frozenset(("done", "failed", "interrupted"))
"""States of a record whose run has written its own entry."""


@dataclass(kw_only=True, slots=True)
class FlowRun:
    """The run of a Prefect flow."""

    id: Text
    name: Text


@dataclass(kw_only=True, slots=True)
class MediaCounts:
    """The files of a run."""

    total: Count = 0
    failed: Count = 0
    open: Count = 0
    """Files that were not read yet."""
    warned: Count = 0


@dataclass(kw_only=True, slots=True)
class TextsRecord:
    """The text files of one format in one place, by what became of them."""

    format: Text
    beside: bool
    """Whether they lie next to the media."""
    written: Count = 0
    kept: Count = 0
    """Those that users wrote or edited."""
    earlier: Count = 0
    others: Count = 0
    """Those that belong to no medium of the run."""


@dataclass(kw_only=True, slots=True)
class Partitions:
    """The partitions of a run on a cluster."""

    total: Count = 0
    done: Count = 0
    failed: Count = 0
    seconds: Number = 0.0
    """Seconds that they took, one after the other."""


@dataclass(kw_only=True, slots=True)
class RunEntry:
    """What is kept of one run, or of several, in the history of its folder."""

    started: Text
    runs: Count = 1
    seconds: Number
    items: dict[Text, Count]
    """Stage → items that it made."""
    tokens: Count
    peak_host_bytes: Count
    peak_device_bytes: Count
    rungs: list[RungRecord]
    timeline: dict[Text, list[Point]]
    """Stage → memory by the time of the run."""
    keys: list[Text]
    current: bool = True

    def __post_init__(self) -> None:
        seconds_of(self.started)


@dataclass(kw_only=True, slots=True)
class RunRecord:
    """The record of the last run into a folder."""

    state: State
    pid: Count
    host: Text
    started: Text
    updated: Text
    out: str
    outputs: dict[Text, str] = field(default_factory=dict)
    """Kind of output → its path, or where it lies."""
    prefect: FlowRun | None = None
    plan: PlanRecord = field(default_factory=PlanRecord)
    rungs: list[RungRecord] = field(default_factory=list)
    """Rungs that stages took in place of those they started on."""
    history: list[RunEntry] = field(default_factory=list)
    keys: list[Text] = field(default_factory=list)
    mounts: dict[Text, Text] = field(default_factory=dict)
    """Mount points of the media → their file systems."""
    stages: list[StageRecord]
    media: MediaCounts = field(default_factory=MediaCounts)
    captions: Count = 0
    corrected: Count = 0
    accepted: Count = 0
    rejected: Count = 0
    summaries: Count = 0
    rows: Count = 0
    """Rows of a command that writes no captions."""
    cut: Count = 0
    """Captions that reached the token limit."""
    texts: list[TextsRecord] = field(default_factory=list)
    earlier: list[Text] = field(default_factory=list)
    """Outputs that an earlier run wrote and this one did not update."""
    edited: dict[Text, list[Text]] = field(default_factory=dict)
    """Data set → its files that the user wrote or edited, which are kept."""
    keep: Text = ""
    """Condition of `sift`."""
    command: CommandRecord | None = None
    partitions: Partitions | None = None
    failures: list[FailureRow] = field(default_factory=list)
    error: Text = ""
    hint: Text = ""
    versions: dict[Text, Text] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises ValueError for a wrong time, and if there is no stage."""
        seconds_of(self.started)
        seconds_of(self.updated)
        if not self.stages:
            raise ValueError("it has no stages")

    @classmethod
    def begun(cls, out: Path, stages: list[StageRecord]) -> "RunRecord":
        """Return the record of a run that this process begins."""
        return cls(
            state="running",
            pid=os.getpid(),
            host=socket.gethostname(),
            started=now(),
            updated=now(),
            out=str(out),
            stages=stages,
            versions=versions(),
        )

    def stage(self, name: str) -> StageRecord:
        """Return the record of one stage."""
        return next(stage for stage in self.stages if stage.name == name)

    def own_entry(self) -> RunEntry | None:
        """Return the entry of its own run; None if that has made nothing."""
        items = {stage.name: stage.items + stage.running for stage in self.stages}
        if not any(items.values()):
            return None
        last = max((span[1] for stage in self.stages for span in stage.spans), default=0.0)
        return RunEntry(
            started=self.started,
            seconds=max(seconds_of(self.updated) - seconds_of(self.started), last),
            items=items,
            tokens=sum(stage.tokens for stage in self.stages),
            peak_host_bytes=max(stage.peak_host_bytes for stage in self.stages),
            peak_device_bytes=max(stage.peak_device_bytes for stage in self.stages),
            rungs=self.rungs[-RUNGS:],
            timeline=_timeline(self.stages),
            keys=self.keys,
        )

    def entries(self) -> list[RunEntry]:
        """Return the history with its own run. A record that goes on, or whose run was killed, has
        no entry of it yet, or one of before it went on."""
        entries = self.history
        has_own = bool(entries) and entries[-1].started == self.started
        if has_own and self.state in ENDED:
            return entries
        return self.with_own_entry(entries[:-1] if has_own else entries)

    def with_own_entry(self, earlier: Iterable[RunEntry]) -> list[RunEntry]:
        """Return the entries of earlier runs and its own, if it made something."""
        own = self.own_entry()
        entries = [*earlier, *([own] if own is not None else [])]
        while len(entries) > RUNS:
            other = next((at for at, entry in enumerate(entries) if not entry.current), None)
            if other is not None:
                del entries[other]
            else:
                entries[:2] = [_merged(*entries[:2])]
        return entries

    def current_runs(self) -> list[RunEntry]:
        """Return the entries of the runs that made what the last run into the folder needed, that
        one included while it works."""
        return [entry for entry in self.entries() if entry.current]


def _timeline(stages: Iterable[StageRecord]) -> dict[str, list[Point]]:
    """Return the memory points of each stage by the time of the run, at most POINTS in all."""
    curves = {
        stage.name: [point for curve in stage.curves() for point in curve] for stage in stages
    }
    while sum(map(len, curves.values())) > POINTS:
        curves = {name: coarser(points) for name, points in curves.items()}
    return {name: points for name, points in curves.items() if points}


def bound(entries: Iterable[RunEntry], keys: Collection[str]) -> list[RunEntry]:
    """Return the entries, and mark those with one of these keys as current. An entry without keys,
    such as that of a cluster's driver, gets them."""
    known, own = frozenset(keys), sorted(keys)[:KEYS]
    return [
        replace(entry, keys=entry.keys or own, current=not known.isdisjoint(entry.keys or own))
        for entry in entries
    ]


def _merged(older: RunEntry, newer: RunEntry) -> RunEntry:
    """Return one entry for two runs, with the rungs of both and the timeline of the newer."""
    items = dict(older.items)
    for name, count in newer.items.items():
        items[name] = items.get(name, 0) + count
    return replace(
        newer,
        started=older.started,
        runs=older.runs + newer.runs,
        seconds=older.seconds + newer.seconds,
        items=items,
        tokens=older.tokens + newer.tokens,
        peak_host_bytes=max(older.peak_host_bytes, newer.peak_host_bytes),
        peak_device_bytes=max(older.peak_device_bytes, newer.peak_device_bytes),
        rungs=[*older.rungs, *newer.rungs][-RUNGS:],
    )


def sum_of(entries: Sequence[RunEntry]) -> RunEntry | None:
    """Return one entry for these runs; None without any."""
    total = next(iter(entries), None)
    for entry in entries[1:]:
        total = _merged(total or entry, entry)
    return total
