"""Shows the progress of a run: what is going on, the items of the stage, their rate and the time
that is left. `modes` shows it on a terminal, as plain lines, or as JSON lines.
"""

import io
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import IO, Any

from artifacts.errors import redacted, with_hint
from artifacts.wording import counted
from flows.core.console.lines import duration, pace, size
from flows.core.console.modes import Step, mode_for
from flows.core.console.pace import Pace
from flows.core.pipelines import STAGES
from stages.process.events import WAITS_FOR_DEVICE, Answered, Event, StageNotes, Total, Warned
from stages.process.output_streams import lasting
from stages.process.stage_spec import CHUNK

READING = "reading the sources and the model"
"""Activity before the first stage."""
VERBS = {
    **{name: stage.verb for name, stage in STAGES.items()},
    "describe": "reading the model",
    "describe_gguf": "reading the GGUF file",
    "tokenizer": "reading the tokenizer",
    "webdataset": "writing samples",
    "cut": "writing the data set",
    "convert": "converting",
    "merge": "merging the adapter",
    "export_features": "exporting features",
}
COUNTS = {
    **{name: stage.counts for name, stage in STAGES.items()},
    "webdataset": "sample",
    "cut": CHUNK,
    "convert": "shard",
    "export_features": "shard",
}
"""Stage → noun of its items."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageStart:
    """What is known of a stage when it begins."""

    name: str
    total: int
    """Number of its items, finished or not."""
    done: int
    """Number of finished items."""
    loads: str = ""
    """What it loads first."""
    verb: str = ""
    """What it does, if not the usual."""
    counts: str | None = None
    """Noun of its items, if not the usual."""
    about: int = 0
    """Estimate of the total, if it begins with files, whose items it finds meanwhile, or if `total`
    is an estimate itself; 0: neither."""
    worked: Callable[[], float] = lambda: 0.0
    """Returns the seconds in which its processes worked, once they ended; 0: unknown."""
    run_left: Callable[[], float | None] | None = None
    """Returns the estimated seconds that all stages of the run have left, None while that is
    unknown; None: there is no other stage."""

    @property
    def reads_files(self) -> bool:
        """Whether it begins with files, so that its number of items is not known yet."""
        return self.name in STAGES and STAGES[self.name].of_media and not STAGES[self.name].reads


class StageProgress:
    """The stage that is shown: its items, and what it does before the first one. `step` is called
    by whoever changes it; the texts are computed on any thread."""

    def __init__(
        self, start: StageStart, made: int, since: float, beside: Mapping[str, tuple[int, float]]
    ) -> None:
        """Begin a stage that has made items, `made`, while the one before was shown, since then.
        `beside`: as `Display` has it, of the stages that run beside this one."""
        self.start = start
        self.done = max(start.done, made)
        self.before = self.done - made
        """Items that were finished before this run."""
        self._made = made
        self._beside = beside
        self._is_estimate = bool(start.about) and not start.reads_files
        self.total = self.done if self._is_estimate else start.total
        self.verb = start.verb or VERBS.get(start.name, start.name)
        self._counts = COUNTS.get(start.name, "") if start.counts is None else start.counts
        self._started = since
        self._pace = Pace(time.monotonic())
        self._loads = start.loads
        """What it is loading; empty once it has begun."""
        self._loading_since = 0.0
        """When its libraries were imported; 0: they are not yet."""
        self._waits = False
        """Whether it waits for its device."""

    def note(self, values: Mapping[str, Any]) -> None:
        """Note what its process reports of its start."""
        if values.get("ready"):
            self._loads = ""
            self._pace.begin(time.monotonic())
            return
        self._waits = bool(values.get(WAITS_FOR_DEVICE))
        if "loaded_bytes" in values:
            self._loading_since = time.monotonic()

    def count(self, made: int) -> None:
        self.done += made
        self._loads = ""
        self._pace.count(time.monotonic(), made)

    def headline(self) -> str:
        """Return what there is to do."""
        is_first, total = self.start.reads_files, self.start.total
        finished = self._counted(self.before) if is_first else self.before
        already = f", {finished} already done" * bool(self.before)
        meanwhile = f", {self._made} done meanwhile" * bool(self._made)
        missing = self._counted(total - self.done, is_first=is_first)
        return f"{self.verb}: {'about ' * self._is_estimate}{missing} to do{already}{meanwhile}"

    def step(self) -> Step:
        if not self._loads:
            total = max(self.total, self.start.about, self.done, 1)
            return Step(doing=self.verb, status=self._status, done=self.done, total=total)
        text, since = self._starting()
        return Step(doing=f"{self.verb}: {text}", status=partial(_so_far, since), joint=", ")

    def summary(self, items: tuple[int, int, bool] | None) -> str:
        """Return what was done. `items`: those done, all, and whether the latter is an estimate;
        None: the stage ended."""
        seconds = self.start.worked() or time.monotonic() - self._started
        text = self._counted(self.done - self.before)
        if items:
            text = f"{items[0]:,} of {'~' * items[2]}{self._counted(items[1])}"
        return f"{self.verb}: {text} in {duration(seconds)}"

    def _starting(self) -> tuple[str, float]:
        """Return what it does before its first item, and since when."""
        if self._waits:
            return "waiting for its device", self._started
        if not self._loading_since:
            return "starting Python and torch", self._started
        return f"loading {self._loads}", self._loading_since

    def _status(self) -> str:
        known = max(self.total, self.done)
        total, about = max(known, self.start.about), "~" if self.start.about > known else ""
        text = f"{self.done}/{about}{total}"
        now = time.monotonic()
        if rate := self._pace.rate(now):
            text += f"  {pace(rate)}"
            if self._pace.is_steady(now):
                text += f"  {about}{self._time_left((total - self.done) / rate)}"
        for name, (done, _) in [*self._beside.items()]:
            text += f"  {VERBS.get(name, name)} {done}"
        return text

    def _time_left(self, of_stage: float) -> str:
        """Return the time left of the run, or of the stage alone where that of the run is
        unknown."""
        if self.start.run_left is None:
            return f"{duration(of_stage)} left"
        if (of_run := self.start.run_left()) is not None:
            return f"{duration(of_run)} left"
        return f"{duration(of_stage)} left for this stage"

    def _counted(self, items: int, *, is_first: bool = False) -> str:
        """Return a number of items with their noun. `is_first`: they are files, which may have
        several chunks each."""
        noun = "file" if is_first and self._counts != "image" else self._counts
        return counted(items, noun) if noun else f"{items:,}"


class Download:
    """The bytes of one download."""

    def __init__(self, total: int, before: int) -> None:
        self.total, self._before = total, before
        self._started = self.shown = time.monotonic()

    def step(self, here: int) -> Step:
        """Return how far it is, with `here` bytes on the disk."""
        seconds = max(time.monotonic() - self._started, 1e-3)
        rate = (here - self._before) / seconds
        if here >= self.total:
            doing, status = "downloaded", f"{size(here)} in {duration(seconds)}"
            return Step(doing=doing, status=lambda: status, done=self.total, total=self.total)
        left = f"  {duration((self.total - here) / rate)} left" if rate > 0 else ""
        status = f"{size(here)} of {size(self.total)}  {size(round(max(rate, 0)))}/s{left}"
        return Step(doing="downloading", status=lambda: status, done=here, total=self.total)


class Display:
    """What a run shows: it follows the events of its stages, and one mode shows them.
    Thread-safe."""

    def __init__(
        self,
        *,
        quiet: bool = False,
        as_json: bool = False,
        to: IO[str] | None = None,
        fleeting: bool = False,
    ) -> None:
        """Show a run on the standard error, or on `to`. `quiet`: show nothing, except a progress
        line if `fleeting`."""
        # stderr is None if it was closed
        stream = lasting(to or sys.stderr or io.StringIO())
        self._mode = mode_for(
            stream, quiet=quiet, as_json=as_json, fleeting=fleeting, is_named=to is not None
        )
        self._lock = threading.RLock()
        self._stage: StageProgress | None = None
        self._beside: dict[str, tuple[int, float]] = {}
        """Stages that began beside the one that is shown: items made, and when the first was."""
        self._failed: set[str] = set()
        """Files whose failure was printed."""
        self._download: Download | None = None
        self._doing = ""
        """Activity before or between stages."""
        self._doing_since = 0.0

    @property
    def has_line(self) -> bool:
        """Whether a line that is written over shows the run."""
        return self._mode.has_line

    def doing(self, text: str) -> None:
        """Show the activity before or between stages."""
        with self._lock:
            if self._stage is not None:
                return
            if text != self._doing:
                self._doing, self._doing_since = text, time.monotonic()
            since = self._doing_since
            so_far = partial(_so_far, since)
            self._mode.show(Step(doing=text, status=so_far, joint=": ", begun=since))

    def stage(self, start: StageStart) -> None:
        """Begin a stage."""
        with self._lock:
            self.close()
            done, since = self._beside.pop(start.name, (0, time.monotonic()))
            stage = self._stage = StageProgress(start, done, since, self._beside)
            self._mode.show(stage.step())
            event = {"stage": start.name, "total": start.total, "done": stage.done}
            self._mode.event({"event": "stage", **event})
            self._mode.begin(stage.headline())

    def on_event(self, name: str, event: Event) -> None:
        """Show an event of a stage process. Failures are shown with `fail`, by file name."""
        if isinstance(event, Answered):
            self._advance(name, event)
        elif isinstance(event, StageNotes) and "shards" in event.values:
            total, done = event.values["shards"], event.values["there"]
            self.stage(StageStart(name=name, total=total, done=done))
        elif isinstance(event, StageNotes):
            with self._lock:
                if (stage := self._named(name)) is not None:
                    stage.note(event.values)
                    self._mode.show(stage.step())
        elif isinstance(event, Total):
            with self._lock:
                if (stage := self._named(name)) is not None and stage.start.reads_files:
                    stage.total = stage.before + event.items
        elif isinstance(event, Warned):
            self.print_line(event.text)

    def _named(self, name: str) -> StageProgress | None:
        """Return the stage that is shown, if it has this name."""
        return self._stage if self._stage is not None and self._stage.start.name == name else None

    def _advance(self, name: str, event: Answered) -> None:
        with self._lock:
            for _ in event.keys:
                self._mode.event({"event": "item", "stage": name, "label": event.label})
            if (stage := self._named(name)) is None:
                done, since = self._beside.get(name, (0, time.monotonic()))
                self._beside[name] = done + len(event.keys), since
                return
            stage.count(len(event.keys))
            self._mode.advance(stage.step())

    def print_line(self, text: str) -> None:
        text = redacted(text)
        with self._lock:
            self._mode.event({"event": "message", "text": text})
            self._mode.line(text)

    def fail(self, *, media_path: str, message: str, hint: str, **_: Any) -> None:
        """Print the failure of a file, once per file."""
        if media_path in self._failed:
            return
        self.print_line(failed_line(media_path, message, hint))
        if self._mode.is_lasting:
            self._failed.add(media_path)

    def has_failed(self, media_path: str) -> bool:
        """Return whether the failure of a file was printed."""
        return media_path in self._failed

    def fetched(self, here: int, total: int) -> None:
        """Show the progress of a download: `here` of `total` bytes."""
        with self._lock:
            now = time.monotonic()
            if self._download is None or self._download.total != total:
                self._download = Download(total, here)
            if here < total and now - self._download.shown < self._mode.download_seconds:
                return
            self._download.shown = now
            self._mode.event({"event": "download", "bytes": here, "total": total})
            self._mode.download(self._download.step(here))
            if here >= total:
                self._download = None

    def end(self, text: str) -> None:
        """Show a line in a cell's output that stays."""
        with self._lock:
            self._mode.end(redacted(text))

    def close(
        self, stopped_at: Callable[[str], tuple[int, int, bool] | None] = lambda stage: None
    ) -> None:
        """End the progress line, and print the summary of the stage. `stopped_at` returns, for a
        stage that did not end, its items: done, all, and whether the latter is an estimate."""
        with self._lock:
            self._doing, self._download = "", None
            self._mode.close()
            stage, self._stage = self._stage, None
            if stage is not None:
                items = stopped_at(stage.start.name)
                if self._mode.is_lasting and (items or stage.done > stage.before):
                    self._mode.line(stage.summary(items))


def _so_far(since: float) -> str:
    return f"{duration(time.monotonic() - since)} so far"


def failed_line(media_path: str, message: str, hint: str) -> str:
    return f"failed: {media_path}: {with_hint(message, hint)}"
