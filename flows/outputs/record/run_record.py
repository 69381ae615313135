"""Writes `run.json` during a run: its plan, progress and costs. It is a report; resuming never
depends on it. Its command is changed here so that it can be repeated.

It keeps a short entry of each run into a folder that made something. An entry has up to KEYS keys
of the items that its run needed. It is current while one of them is among the keys of the latest
run: a run with another prompt, model or media neither counts the work of the others nor loses it.
"""

import contextlib
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artifacts.disk.files import write_json
from artifacts.errors import CannotFit, EnvironmentFault, Interrupted, PenstockError, redacted
from artifacts.options import declared
from artifacts.remote.addresses import signed
from artifacts.schema import values_of
from artifacts.texts.captions import Failure
from flows.core.machine.versions import now, versions
from flows.core.options.commands import CaptionConfig
from flows.core.pipelines import CAPTION, Pipeline
from stages.process.events import StageOutcome

if TYPE_CHECKING:  # it loads what reads checkpoints, before the first line of a run
    from flows.core.job.prepare import Job

COMMAND = "caption"
"""The command that may be repeated."""
OMITTED_OPTIONS = (
    *("--prefect", "--retry-failed", "--json", "--quiet", "--replace"),
    *("--trust-remote-code", "--trust-folder"),
)
"""Options left out of a repeated command: they do more than write files, hide its output, drop
rows, or trust code or files of others, which needs consent each time."""


def repeated(words: Sequence[str]) -> list[str]:
    """Return the words of a command for another run."""
    return [word for word in words if word not in OMITTED_OPTIONS]


def moved_with(path: Path, before: Path, out: Path) -> Path:
    """Return where a path is now: one in the run's folder of before, in the folder that it is."""
    return out / path.relative_to(before) if path.is_relative_to(before) else path


def with_values(words: Sequence[str], values: Mapping[str, str]) -> list[str]:
    """Return the words of a command with other values of these options, which take one each."""
    kept, rest = list[str](), iter(words[1:])
    for word in rest:
        if word == "--":
            kept += [word, *rest]
        elif word in values:
            next(rest, None)
        elif word.partition("=")[0] not in values:
            kept.append(word)
    given = [word for pair in values.items() for word in pair]
    return [*words[:1], *given, *kept]


def words_of(config: CaptionConfig) -> list[str]:
    """Return the words of the command that makes the configuration of a caption run; none if a text
    in a list has a comma, at which the command line splits it."""
    words = [COMMAND]
    for declaration in declared(CaptionConfig):
        value, default = getattr(config, declaration.name), declaration.field.default
        if declaration.option.positional or value is None or value == default:
            continue
        parts = value if isinstance(value, tuple) else ()
        if any("," in part or part != part.strip() for part in parts):
            return []
        words += declaration.words(value)
    return [*words, "--", *config.sources]


def command_of(words: Sequence[str]) -> dict[str, Any] | None:
    """Return words and this folder as a record has them; None if the words hold credentials."""
    values = [part for word in words for part in (word, word.partition("=")[2])]
    if not words or any(redacted(value) != value or signed(value) for value in values):
        return None
    return {"words": [*words], "folder": os.getcwd()}


def remember(words: Sequence[str], job: "Job", record: "RunRecord") -> None:
    """Store the command of a run in its record, with its store, unless it contains credentials."""
    if words and not job.config.store:
        words = with_values(words, {"--store": job.store.url})
    record.value["command"] = command_of(words)


Entry = dict[str, Any]
"""What is kept of one run, in the history of its folder."""
RUN_RECORD = "run.json"
"""File of the record, in the folder of a run."""
REWRITE_SECONDS = 2.0
"""Minimum seconds between two writes of the record during a run."""
SAMPLE_SECONDS = 65.0
"""Age limit, in seconds, of the samples from which the latest speed is computed."""
NAMED_FAILURES = 20
"""Maximum failures in the record; `failures.jsonl` has all of them when the run ends."""
TIMELINE_POINTS = 7200
"""Maximum points of a stage's memory timeline; beyond it, pairs of neighbours are merged."""
SPANS = 1000
"""Maximum stage processes with a recorded start and end; beyond it, neighbours are merged."""
OVERLAP_NOTES = ("beside", "beside_ended")
"""Notes of a stage that later processes do not replace: beside which stage a process ran, and why
that ended early."""
ON_DEVICE = {"items": 0, "seconds": 0.0, "peak_device_bytes": 0}
"""What is recorded of each GPU of a stage that ran on several."""
KEPT_WARNINGS = 1000
"""Maximum warnings kept per stage; `captions.jsonl` has those of each caption."""


class RunRecord:
    """The run record, which `penstock status` and users read."""

    def __init__(self, out: Path, pipeline: Pipeline = CAPTION, **more: Any) -> None:
        """Begin the record; `more` are further fields, such as the command that started the run."""
        self.path = out / RUN_RECORD
        self._written = 0.0
        self._lock = threading.RLock()
        self.value: dict[str, Any] = {**blank(out, pipeline), "versions": versions(), **more}
        self._stages = [stage.name for stage in pipeline]
        self._earlier: list[Entry] = []
        """Entries of earlier runs into the folder."""
        self._began = seconds_of(self.value["started"])

    def stage(self, name: str) -> dict[str, Any]:
        """Return the mutable record of one stage."""
        stage_record: dict[str, Any] = next(s for s in self.value["stages"] if s["name"] == name)
        return stage_record

    def carry_on(self, history: Iterable[Entry], keys: Collection[str]) -> None:
        """Keep the entries of earlier runs into the folder, bound to the keys of this run."""
        self._earlier = bound(history, keys)
        self.value.update(history=self._earlier, keys=sorted(keys)[:KEYS])

    def expect(self, name: str, total: int, done: int) -> None:
        """Record a stage's total number of items, and how many the store has already."""
        entry = self.stage(name)
        made = entry["items"] + entry["running"]
        entry.update(total=total, before=max(0, done - made))

    def count_total(self, name: str, items: int) -> None:
        """Record how many items a running process will publish, as far as it knows by now."""
        with self._lock:
            entry = self.stage(name)
            entry["total"] = max(entry["total"], entry["before"] + entry["items"] + items)

    @contextlib.contextmanager
    def _changing(self, *, force: bool) -> Iterator[None]:
        """Write the record after the block. Ignores a full disk, which the stages report."""
        with self._lock, contextlib.suppress(EnvironmentFault):
            yield
            self.write(force=force)

    def begin(self, name: str) -> None:
        """Record that a process of a stage starts."""
        if name in self._stages:
            with self._changing(force=True):
                self.stage(name).update(
                    since=round(time.time(), 1), running=0, recent=[], now=[], device=""
                )

    def memory(self, name: str, seen: Mapping[str, Any]) -> None:
        """Record a memory sample of a running process, and update the peaks."""
        if name in self._stages:
            with self._changing(force=False):
                entry = self.stage(name)
                for peak in ("peak_host_bytes", "peak_device_bytes"):
                    entry[peak] = max(entry[peak], seen[peak])
                entry["device"] = entry["device"] or seen["device"]
                if seen["device"] != entry["device"]:  # beside the process that is shown
                    return
                entry["now"].append([seen[n] for n in ("seconds", "host_bytes", "device_bytes")])
                if len(entry["now"]) > TIMELINE_POINTS:
                    entry["now"] = coarser(entry["now"])

    def imported(self, name: str, notes: Mapping[str, Any]) -> None:
        """Record what the imports of a running process take, which memory is counted above."""
        if name in self._stages and "loaded_bytes" in notes:
            with self._lock:
                self.stage(name)["notes"]["loaded_bytes"] = notes["loaded_bytes"]

    def rung(self, taken: Mapping[str, Any]) -> None:
        """Record that a stage runs on another rung than requested."""
        with self._changing(force=True):
            self.value["rungs"].append({**taken, "time": now()})

    def fail(self, name: str, failure: Mapping[str, str]) -> None:
        """Record a failed item of a stage that continues. Writing the outputs recounts failures."""
        if name in self._stages:
            with self._changing(force=len(self.value["failures"]) < NAMED_FAILURES):
                self.stage(name)["failed"] += 1
                self.value["media"]["failed"] += 1
                if len(self.value["failures"]) < NAMED_FAILURES:
                    self.value["failures"].append(dict(failure))

    def fails(self, failures: Sequence[Failure]) -> None:
        """Replace the recorded failures with those of this run and earlier ones."""
        counts = Counter(failure.stage for failure in failures)
        with self._lock:
            self.value["media"]["failed"] = len(failures)
            self.value["failures"] = [values_of(f) for f in failures[:NAMED_FAILURES]]
            for entry in self.value["stages"]:
                entry["failed"] = counts[entry["name"]]

    def is_running(self, name: str) -> bool:
        """Return whether a process of a stage has begun, and not ended."""
        return name in self._stages and bool(self.stage(name)["since"])

    def count_items(self, name: str, made: int, device: str = "") -> None:
        """Record that a running process of a stage has published so many more items: that on
        `device`, if the stage runs on several.

        Called on the stage's thread. The stage itself reports a full disk.
        """
        if name in self._stages:
            with self._changing(force=False):
                entry, at = self.stage(name), time.time()
                if device:
                    entry["devices"].setdefault(device, dict(ON_DEVICE))["items"] += made
                items = entry["running"] = entry["running"] + made
                if not entry["recent"] or at - entry["recent"][-1][0] >= REWRITE_SECONDS:
                    entry["recent"] = [s for s in entry["recent"] if s[0] >= at - SAMPLE_SECONDS]
                    entry["recent"].append([round(at, 1), entry["items"] + items])

    def note_latest(self, name: str, path: str) -> None:
        """Record the file that a stage worked on last, if UTF-8 can hold its name."""
        if name in self._stages:
            with self._lock, contextlib.suppress(UnicodeEncodeError):
                self.stage(name)["latest"] = path.encode().decode()

    def add(self, outcome: StageOutcome, *, attention: str, precision: Mapping[str, str]) -> None:
        """Add the outcome of one finished stage process; a stage may run several, one per wave."""
        if outcome.name not in self._stages:
            return
        with self._lock:
            self._count(outcome, attention, precision)
            self.write(force=True)

    def _count(self, outcome: StageOutcome, attention: str, precision: Mapping[str, str]) -> None:
        entry = self.stage(outcome.name)
        ended, before = time.time(), entry["timeline"][-1:]
        # Start after the last point of the previous process, which may have sampled once more.
        offset = max(entry["seconds"], *(point[0] + 0.01 for point in before), 0.0)
        began = entry["since"] or ended - outcome.seconds
        span = [round(began - self._began, 1), round(ended - self._began, 1), round(offset, 2)]
        entry["spans"].append([max(0.0, span[0]), *span[1:]])
        while len(entry["spans"]) > SPANS:
            pairs = [entry["spans"][at : at + 2] for at in range(0, len(entry["spans"]), 2)]
            entry["spans"] = [[pair[0][0], pair[-1][1], pair[0][2]] for pair in pairs]
        entry["processes"] += 1
        entry.update(running=0, since=0.0, recent=[], now=[], latest="")
        for name in ("items", "tokens", "seconds", "cpu_seconds"):
            entry[name] += getattr(outcome, name)
        for name in ("peak_host_bytes", "peak_device_bytes"):
            entry[name] = max(entry[name], getattr(outcome, name))
        for device, part in outcome.devices.items():
            if not part.items:
                continue
            of_device = entry["devices"].setdefault(device, dict(ON_DEVICE))
            of_device["seconds"] += part.seconds
            peak = max(of_device["peak_device_bytes"], part.peak_device_bytes)
            of_device["peak_device_bytes"] = peak
        entry["baseline_before_bytes"] = outcome.baseline_before_bytes
        entry["baseline_after_bytes"] = outcome.baseline_after_bytes
        entry["timeline"] += [
            [round(offset + t, 2), host, device] for t, host, device in outcome.timeline
        ]
        while len(entry["timeline"]) > TIMELINE_POINTS:
            entry["timeline"] = coarser(entry["timeline"])
        entry["warnings"] = [*entry["warnings"], *outcome.warnings][:KEPT_WARNINGS]
        kept = {name: entry["notes"][name] for name in OVERLAP_NOTES if name in entry["notes"]}
        entry["notes"] = {**kept, **outcome.notes}
        entry["attention"] = attention
        entry["precision"] = dict(precision)

    def finish(self, state: str, error: str = "") -> None:
        """Write the run's final state: done, failed or interrupted."""
        self.value.update(state=state, error=redacted(error), updated=now())
        self.value["history"] = with_run(self._earlier, self.value)
        self.write(force=True)

    @contextlib.contextmanager
    def recording_end(self) -> Iterator[None]:
        """Record how a block ends."""
        try:
            yield
        except BaseException as error:
            stopped = isinstance(error, Interrupted) or not isinstance(error, Exception)
            message = str(error)
            if isinstance(error, CannotFit):  # the same command again does not fit either
                message, self.value["hint"] = error.message, error.hint
            with contextlib.suppress(PenstockError):
                self.finish("interrupted" if stopped else "failed", error=message)
            raise
        self.finish("done")

    def write(self, *, force: bool) -> None:
        with self._lock:
            if not force and time.monotonic() - self._written < REWRITE_SECONDS:
                return
            self._written = time.monotonic()
            self.value["updated"] = now()
            write_json(self.path, self.value)


def blank(out: Path, pipeline: Pipeline = CAPTION) -> dict[str, Any]:
    """Return the record of a new run."""
    return {
        "state": "running",
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "started": now(),
        "updated": now(),
        "out": str(out),
        "outputs": {},
        "prefect": None,
        "plan": {},
        "rungs": [],
        "history": [],
        "keys": [],
        "mounts": {},
        "stages": [empty(stage.name) for stage in pipeline],
        "media": dict.fromkeys(("total", "failed", "open", "warned"), 0),
        "captions": 0,
        "summaries": 0,
        "rows": 0,
        "cut": 0,
        "texts": [],
        "earlier": [],
        "edited": {},
        "command": None,
        "failures": [],
        "error": "",
    }


def empty(name: str) -> dict[str, Any]:
    """Return the record of a stage before its first process."""
    return {
        "name": name,
        **dict.fromkeys(("items", "total", "before", "running", "failed"), 0),
        "since": 0.0,
        "recent": [],
        "latest": "",
        **dict.fromkeys(("processes", "tokens"), 0),
        **dict.fromkeys(("seconds", "cpu_seconds"), 0.0),
        **dict.fromkeys(("peak_host_bytes", "peak_device_bytes"), 0),
        **dict.fromkeys(("baseline_before_bytes", "baseline_after_bytes"), 0),
        "attention": "",
        "precision": {},
        "device": "",
        "devices": {},
        "spans": [],
        "timeline": [],
        "now": [],
        "warnings": [],
        "notes": {},
    }


RUNS = 50
"""Maximum entries: beyond it, one that is not current goes, or else the two oldest are merged."""
POINTS = 200
"""Maximum points of an entry's timeline, all stages together."""
RUNGS = 20
"""Maximum rungs of an entry; the first ones go."""
KEYS = 8
"""Maximum keys of an entry."""
ENDED = ("done", "failed", "interrupted")
"""States of a record whose run has written its own entry."""
PEAKS = ("peak_host_bytes", "peak_device_bytes")


def seconds_of(stamp: str) -> float:
    """Return a time of the record in seconds since the epoch."""
    return datetime.fromisoformat(stamp).timestamp()


def entry_of(record: Mapping[str, Any]) -> Entry | None:
    """Return the entry of a record's own run; None if it has made nothing."""
    stages = record["stages"]
    items = {stage["name"]: stage["items"] + stage["running"] for stage in stages}
    if not any(items.values()):
        return None
    last = max((span[1] for stage in stages for span in stage["spans"]), default=0.0)
    return {
        "started": record["started"],
        "runs": 1,
        "seconds": max(seconds_of(record["updated"]) - seconds_of(record["started"]), last),
        "items": items,
        "tokens": sum(stage["tokens"] for stage in stages),
        **{name: max(stage[name] for stage in stages) for name in PEAKS},
        "rungs": record["rungs"][-RUNGS:],
        "timeline": _timeline(stages),
        "keys": record["keys"],
        "current": True,
    }


def _timeline(stages: Iterable[Mapping[str, Any]]) -> dict[str, list[list[Any]]]:
    """Return the memory points of each stage by the time of the run, at most POINTS in all."""
    curves = {
        stage["name"]: [point for curve in curves_of(stage) for point in curve] for stage in stages
    }
    while sum(map(len, curves.values())) > POINTS:
        curves = {name: coarser(points) for name, points in curves.items()}
    return {name: points for name, points in curves.items() if points}


def curves_of(stage: Mapping[str, Any]) -> list[list[list[Any]]]:
    """Return the memory points of each ended process of a stage, by the time of the run.

    The record has them by the working time of the stage. They are aligned with the end of a
    process, not its start, because it may have waited for the GPU before its first sample.
    """
    points, worked = stage["timeline"], stage["seconds"]
    spans = stage["spans"] or [[0.0, worked, 0.0]]
    ends = [
        *(span[2] for span in spans[1:]),
        max(worked, *(point[0] for point in points[-1:]), 0.0),
    ]
    curves: list[list[list[Any]]] = [[] for _ in spans]
    at = 0
    for seconds, host, device in points:
        while at + 1 < len(spans) and seconds >= spans[at + 1][2]:
            at += 1
        start, end, _ = spans[at]
        moment = min(max(end - (ends[at] - seconds), start), end)
        curves[at].append([round(moment, 2), host, device])
    return [curve for curve in curves if curve]


def coarser(timeline: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """Return half as many points, each with the maximum of two."""
    pairs = [timeline[at : at + 2] for at in range(0, len(timeline), 2)]
    return [[pair[0][0], max(p[1] for p in pair), max(p[2] for p in pair)] for pair in pairs]


def history_of(record: Mapping[str, Any]) -> list[Entry]:
    """Return the history of a record, with its own run. A record that goes on, or whose run was
    killed, has no entry of it yet, or one of before it went on."""
    entries: list[Entry] = record["history"]
    has_own = bool(entries) and entries[-1]["started"] == record["started"]
    if has_own and record["state"] in ENDED:
        return entries
    return with_run(entries[:-1] if has_own else entries, record)


def with_run(earlier: Iterable[Entry], record: Mapping[str, Any]) -> list[Entry]:
    """Return the entries of earlier runs and that of a record's run, if it made something."""
    own = entry_of(record)
    entries = [*earlier, *([own] if own is not None else [])]
    while len(entries) > RUNS:
        other = next((at for at, entry in enumerate(entries) if not entry["current"]), None)
        if other is not None:
            del entries[other]
        else:
            entries[:2] = [_merged(*entries[:2])]
    return entries


def bound(entries: Iterable[Entry], keys: Collection[str]) -> list[Entry]:
    """Return the entries, and mark those with one of these keys as current. An entry without keys,
    such as that of a cluster's driver, gets them."""
    known, own = frozenset(keys), sorted(keys)[:KEYS]
    return [
        {
            **entry,
            "keys": entry["keys"] or own,
            "current": not known.isdisjoint(entry["keys"] or own),
        }
        for entry in entries
    ]


def _merged(older: Entry, newer: Entry) -> Entry:
    """Return one entry for two runs, with the rungs of both and the timeline of the newer."""
    items = dict(older["items"])
    for name, count in newer["items"].items():
        items[name] = items.get(name, 0) + count
    sums = {name: older[name] + newer[name] for name in ("runs", "seconds", "tokens")}
    peaks = {name: max(older[name], newer[name]) for name in PEAKS}
    rungs = [*older["rungs"], *newer["rungs"]][-RUNGS:]
    return {**newer, **sums, **peaks, "started": older["started"], "items": items, "rungs": rungs}


def current_runs(record: Mapping[str, Any]) -> list[Entry]:
    """Return the entries of the runs that made what the last run into the folder needed, that one
    included while it works."""
    return [entry for entry in history_of(record) if entry["current"]]


def sum_of(entries: Sequence[Entry]) -> Entry | None:
    """Return one entry for these runs; None without any."""
    total = next(iter(entries), None)
    for entry in entries[1:]:
        total = _merged(total or entry, entry)
    return total
