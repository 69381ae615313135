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
from flows.outputs.marker import MARKER
from flows.outputs.record.stage_record import (
    REWRITE_SECONDS,
    Point,
    StageRecord,
    coarser,
    stages_in,
)
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
NAMED_FAILURES = 20
"""Maximum failures in the record; `failures.jsonl` has all of them when the run ends."""


class RunRecord:
    """The run record, which `penstock status` and users read."""

    def __init__(self, out: Path, pipeline: Pipeline = CAPTION, **more: Any) -> None:
        """Begin the record; `more` are further fields, such as the command that started the run."""
        self.path = out / RUN_RECORD
        self._written = 0.0
        self._was_marked = False
        """Whether the folder had its marker at an earlier look."""
        self._lock = threading.RLock()
        self.value: dict[str, Any] = {**blank(out, pipeline), "versions": versions(), **more}
        self._stages = [stage.name for stage in pipeline]
        self._earlier: list[Entry] = []
        """Entries of earlier runs into the folder."""
        self._began = seconds_of(self.value["started"])

    def stage(self, name: str) -> StageRecord:
        """Return the record of one stage."""
        return next(stage for stage in self.stages if stage.name == name)

    @property
    def stages(self) -> list[StageRecord]:
        return stages_in(self.value)

    def carry_on(self, history: Iterable[Entry], keys: Collection[str]) -> None:
        """Keep the entries of earlier runs into the folder, bound to the keys of this run."""
        self._earlier = bound(history, keys)
        self.value.update(history=self._earlier, keys=sorted(keys)[:KEYS])

    def expect(self, name: str, total: int, done: int) -> None:
        """Record a stage's total number of items, and how many the store has already."""
        stage = self.stage(name)
        stage.total, stage.before = total, max(0, done - stage.items - stage.running)

    def count_total(self, name: str, items: int) -> None:
        """Record how many items a running process will publish, as far as it knows by now."""
        with self._lock:
            stage = self.stage(name)
            stage.total = max(stage.total, stage.before + stage.items + items)

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
                self.stage(name).begin(round(time.time(), 1))

    def memory(self, name: str, seen: Mapping[str, Any]) -> None:
        """Record a memory sample of a running process, and update the peaks."""
        if name in self._stages:
            with self._changing(force=False):
                self.stage(name).sample(seen)

    def imported(self, name: str, notes: Mapping[str, Any]) -> None:
        """Record what the imports of a running process take, which memory is counted above."""
        if name in self._stages and "loaded_bytes" in notes:
            with self._lock:
                self.stage(name).notes["loaded_bytes"] = notes["loaded_bytes"]

    def rung(self, taken: Mapping[str, Any]) -> None:
        """Record that a stage runs on another rung than requested."""
        with self._changing(force=True):
            self.value["rungs"].append({**taken, "time": now()})

    def fail(self, name: str, failure: Mapping[str, str]) -> None:
        """Record a failed item of a stage that continues. Writing the outputs recounts failures."""
        if name in self._stages:
            with self._changing(force=len(self.value["failures"]) < NAMED_FAILURES):
                self.stage(name).failed += 1
                self.value["media"]["failed"] += 1
                if len(self.value["failures"]) < NAMED_FAILURES:
                    self.value["failures"].append(dict(failure))

    def fails(self, failures: Sequence[Failure]) -> None:
        """Replace the recorded failures with those of this run and earlier ones."""
        counts = Counter(failure.stage for failure in failures)
        with self._lock:
            self.value["media"]["failed"] = len(failures)
            self.value["failures"] = [values_of(f) for f in failures[:NAMED_FAILURES]]
            for stage in self.stages:
                stage.failed = counts[stage.name]

    def is_running(self, name: str) -> bool:
        """Return whether a process of a stage has begun, and not ended."""
        return name in self._stages and bool(self.stage(name).since)

    def count_items(self, name: str, made: int, device: str = "") -> None:
        """Record that a running process of a stage has published so many more items: that on
        `device`, if the stage runs on several.

        Called on the stage's thread. The stage itself reports a full disk.
        """
        if name in self._stages:
            with self._changing(force=False):
                self.stage(name).count(made, time.time(), device)

    def note_latest(self, name: str, path: str) -> None:
        """Record the file that a stage worked on last, if UTF-8 can hold its name."""
        if name in self._stages:
            with self._lock, contextlib.suppress(UnicodeEncodeError):
                self.stage(name).latest = path.encode().decode()

    def add(self, outcome: StageOutcome, *, attention: str, precision: Mapping[str, str]) -> None:
        """Add the outcome of one finished stage process; a stage may run several, one per wave."""
        if outcome.name not in self._stages:
            return
        with self._lock:
            stage = self.stage(outcome.name)
            stage.add(outcome, self._began, time.time())
            stage.attention, stage.precision = attention, dict(precision)
            self.write(force=True)

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

    @property
    def is_gone(self) -> bool:
        """Whether the folder of the run was removed or moved since it began. What is written there
        now would be a folder that nobody owns, which the same command refuses."""
        is_marked = os.path.lexists(self.path.parent / MARKER)
        self._was_marked = self._was_marked or is_marked
        return self._was_marked and not is_marked

    def write(self, *, force: bool) -> None:
        with self._lock:
            if not force and time.monotonic() - self._written < REWRITE_SECONDS:
                return
            if self.is_gone:
                return
            self._written = time.monotonic()
            self.value["updated"] = now()
            write_json(self.path, self.to_json())

    def to_json(self) -> dict[str, Any]:
        return {**self.value, "stages": [stage.to_json() for stage in self.stages]}


def blank(out: Path, pipeline: Pipeline = CAPTION) -> dict[str, Any]:
    """Return the fields of a new run."""
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
        "stages": [StageRecord(name=stage.name) for stage in pipeline],
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
    stages = stages_in(record)
    items = {stage.name: stage.items + stage.running for stage in stages}
    if not any(items.values()):
        return None
    last = max((span[1] for stage in stages for span in stage.spans), default=0.0)
    return {
        "started": record["started"],
        "runs": 1,
        "seconds": max(seconds_of(record["updated"]) - seconds_of(record["started"]), last),
        "items": items,
        "tokens": sum(stage.tokens for stage in stages),
        "peak_host_bytes": max(stage.peak_host_bytes for stage in stages),
        "peak_device_bytes": max(stage.peak_device_bytes for stage in stages),
        "rungs": record["rungs"][-RUNGS:],
        "timeline": _timeline(stages),
        "keys": record["keys"],
        "current": True,
    }


def _timeline(stages: Iterable[StageRecord]) -> dict[str, list[Point]]:
    """Return the memory points of each stage by the time of the run, at most POINTS in all."""
    curves = {
        stage.name: [point for curve in stage.curves() for point in curve] for stage in stages
    }
    while sum(map(len, curves.values())) > POINTS:
        curves = {name: coarser(points) for name, points in curves.items()}
    return {name: points for name, points in curves.items() if points}


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
