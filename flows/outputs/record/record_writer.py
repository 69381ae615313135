"""Writes `run.json` during a run."""

import contextlib
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from artifacts.disk.files import write_json
from artifacts.disk.json_records import json_of
from artifacts.disk.json_shapes import Json
from artifacts.errors import CannotFit, EnvironmentFault, Interrupted, PenstockError, redacted
from artifacts.schema import values_of
from artifacts.texts.captions import Failure
from flows.core.job.plan_record import RungRecord
from flows.core.machine.versions import now, seconds_of
from flows.core.media.output_rows import FailureRow
from flows.core.pipelines import CAPTION, Pipeline
from flows.outputs.marker import MARKER
from flows.outputs.record.recorded_command import command_of, with_values
from flows.outputs.record.run_record import (
    KEYS,
    NAMED_FAILURES,
    RUN_RECORD,
    RunEntry,
    RunRecord,
    State,
    bound,
)
from flows.outputs.record.stage_record import REWRITE_SECONDS, StageRecord
from stages.process.events import StageOutcome

if TYPE_CHECKING:  # it loads what reads checkpoints, before the first line of a run
    from flows.core.job.prepare import Job


def remember(words: Sequence[str], job: "Job", writer: "RecordWriter") -> None:
    """Store the command of a run in its record, with its store, unless it contains credentials."""
    if words and not job.config.store:
        words = with_values(words, {"--store": job.store.url})
    writer.record.command = command_of(words)


class RecordWriter:
    """The writer of a run's record, which `penstock status` and users read. Thread-safe."""

    on_begin: ClassVar[Callable[[Path, RunRecord], None] | None] = None
    """Called with the folder and the record of each run that this process begins; None: by
    nobody."""

    def __init__(self, out: Path, pipeline: Pipeline = CAPTION) -> None:
        """Begin the record."""
        self.path = out / RUN_RECORD
        self._written = 0.0
        self._was_marked = False
        """Whether the folder had its marker at an earlier look."""
        self._lock = threading.RLock()
        stages = [StageRecord(name=stage.name) for stage in pipeline]
        self.record = RunRecord.begun(out, stages)
        self._stages = [stage.name for stage in pipeline]
        self._earlier: list[RunEntry] = []
        """Entries of earlier runs into the folder."""
        self._began = seconds_of(self.record.started)
        if RecordWriter.on_begin is not None:
            RecordWriter.on_begin(out, self.record)

    def stage(self, name: str) -> StageRecord:
        """Return the record of one stage."""
        return self.record.stage(name)

    def carry_on(self, history: Iterable[RunEntry], keys: Collection[str]) -> None:
        """Keep the entries of earlier runs into the folder, bound to the keys of this run."""
        with self._lock:
            self._earlier = bound(history, keys)
            self.record.history, self.record.keys = self._earlier, sorted(keys)[:KEYS]

    def expect(self, name: str, total: int, done: int) -> None:
        """Record a stage's total number of items, and how many the store has already."""
        with self._lock:
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

    def imported(self, name: str, notes: Mapping[str, Json]) -> None:
        """Record what the imports of a running process take, which memory is counted above."""
        if name in self._stages and "loaded_bytes" in notes:
            with self._lock:
                self.stage(name).notes["loaded_bytes"] = notes["loaded_bytes"]

    def rung(self, taken: RungRecord) -> None:
        """Record that a stage runs on another rung than requested."""
        with self._changing(force=True):
            self.record.rungs.append(taken)

    def fail(self, name: str, failure: Mapping[str, str]) -> None:
        """Record a failed item of a stage that continues. Writing the outputs recounts failures."""
        if name in self._stages:
            named = self.record.failures
            with self._changing(force=len(named) < NAMED_FAILURES):
                self.stage(name).failed += 1
                self.record.media.failed += 1
                if len(named) < NAMED_FAILURES:
                    named.append(FailureRow(**failure))

    def fails(self, failures: Sequence[Failure]) -> None:
        """Replace the recorded failures with those of this run and earlier ones."""
        counts = Counter(failure.stage for failure in failures)
        with self._lock:
            self.record.media.failed = len(failures)
            named = failures[:NAMED_FAILURES]
            self.record.failures = [FailureRow(**values_of(failure)) for failure in named]
            for stage in self.record.stages:
                stage.failed = counts[stage.name]

    def is_running(self, name: str) -> bool:
        """Return whether a process of a stage has begun, and not ended."""
        return name in self._stages and bool(self.stage(name).since)

    def count_items(self, name: str, items: int, device: str = "") -> None:
        """Record that a running process of a stage has published so many more items: that on
        `device`, if the stage runs on several.

        Called on the stage's thread. The stage itself reports a full disk.
        """
        if name in self._stages:
            with self._changing(force=False):
                self.stage(name).count(items, time.time(), device)

    def note_latest(self, name: str, path: str) -> None:
        """Record the file that a stage worked on last, if UTF-8 can hold its name."""
        if name in self._stages:
            with self._lock, contextlib.suppress(UnicodeEncodeError):
                self.stage(name).latest = path.encode().decode()

    def add(self, outcome: StageOutcome, *, attention: str, precision: Mapping[str, str]) -> None:
        """Add the outcome of one finished stage process; a stage may run several, one per wave."""
        if outcome.name not in self._stages:
            return
        with self._changing(force=True):
            stage = self.stage(outcome.name)
            stage.add(outcome, self._began, time.time())
            stage.attention, stage.precision = attention, dict(precision)

    def finish(self, state: State, error: str = "") -> None:
        """Write the run's final state: done, failed or interrupted."""
        with self._lock:
            record = self.record
            record.state, record.error, record.updated = state, redacted(error), now()
            record.history = record.with_own_entry(self._earlier)
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
                message, self.record.hint = error.message, error.hint
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
            self.record.updated = now()
            write_json(self.path, json_of(self.record))
