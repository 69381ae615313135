"""Writes `run.json` during a run: its plan, progress and costs. It is a report; resuming never
depends on it. Its command is changed here so that it can be repeated.
"""

import contextlib
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from artifacts.captions import Failure, values_of
from artifacts.errors import EnvironmentFault, Interrupted, PenstockError, redacted
from artifacts.files import write_json
from flows.machine.versions import now, versions
from flows.pipelines import CAPTION, Pipeline
from flows.results.run_history import KEYS, Entry, bound, coarser, seconds_of, with_run
from stages.process.events import StageOutcome

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
        found: dict[str, Any] = next(s for s in self.value["stages"] if s["name"] == name)
        return found

    def carry_on(self, history: Iterable[Entry], keys: Collection[str]) -> None:
        """Keep the entries of earlier runs into the folder, bound to the keys of this run."""
        self._earlier = bound(history, keys)
        self.value.update(history=self._earlier, keys=sorted(keys)[:KEYS])

    def expect(self, name: str, total: int, done: int) -> None:
        """Record a stage's total number of items, and how many the store has already."""
        entry = self.stage(name)
        entry.update(total=total, before=max(0, done - entry["items"]))

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
            with self._changing(force=False):
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

    def count_item(self, name: str, device: str = "") -> None:
        """Record that a running process of a stage has published one more item: that on `device`,
        if the stage runs on several.

        Called on the stage's thread. The stage itself reports a full disk.
        """
        if name in self._stages:
            with self._changing(force=False):
                entry, at = self.stage(name), time.time()
                if device:
                    entry["devices"].setdefault(device, dict(ON_DEVICE))["items"] += 1
                items = entry["running"] = entry["running"] + 1
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
        ways = Counter(entry["notes"].get("ways", {})) + Counter(outcome.notes.get("ways", {}))
        kept = {name: entry["notes"][name] for name in OVERLAP_NOTES if name in entry["notes"]}
        entry["notes"] = {**kept, **outcome.notes, **({"ways": dict(ways)} if ways else {})}
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
            with contextlib.suppress(PenstockError):
                self.finish("interrupted" if stopped else "failed", error=str(error))
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
        "stages": [empty(stage.name) for stage in pipeline],
        "media": {"total": 0, "failed": 0, "open": 0},
        "captions": 0,
        "summaries": 0,
        "rows": 0,
        "cut": 0,
        "texts": [],
        "earlier": [],
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
