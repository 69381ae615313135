"""Shows the progress of a run on a terminal, as plain lines, or as JSON lines.

For each stage it computes the rate and the remaining time.
"""

import io
import json
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import IO, TYPE_CHECKING, Any

from artifacts.errors import redacted, with_hint
from artifacts.wording import counted
from flows.core.console.lines import (
    duration,
    fitted,
    in_cell,
    is_terminal,
    obeys_control_codes,
    pace,
    print_lines,
    size,
    terminal_width,
)
from flows.core.pipelines import STAGES
from stages.process.events import WAITS_FOR_DEVICE, Event, Item, StageNotes, Total, Warned
from stages.process.output_streams import lasting
from stages.process.stage_spec import CHUNK

if TYPE_CHECKING:
    from rich.progress import Progress

WINDOW_SECONDS = 120.0
"""Minimum window of the rate; the window is at least half of the elapsed time. Old items do not
predict the rest, and a few items are not enough."""
GROUP_SECONDS = 0.1
"""Items within this time of the first one belong to one batch, which is reported item by item."""

STEADY_ITEMS, STEADY_SECONDS = 10, 5.0
"""Items, and seconds since the stage was ready, from which the time left is shown."""
SLOW_SECONDS = 20.0
"""The same where an item takes long: seconds without regard to the number of items."""


@dataclass(frozen=True, slots=True)
class ItemGroup:
    """Items of one batch."""

    first: float
    last: float
    made: int
    """Total number of items up to its last one."""


class Pace:
    """The item counts of a stage over time, since it was ready. One thread writes, any thread
    reads."""

    def __init__(self, now: float) -> None:
        self._begun = now
        self._groups: deque[ItemGroup] = deque()
        self._rate = 0.0
        """Items per second of the complete groups; 0: none."""

    def begin(self, now: float) -> None:
        """Restart the clock after loading."""
        if not self._groups:
            self._begun = now

    def count(self, now: float) -> None:
        newest = self._groups[-1] if self._groups else ItemGroup(now, now, 0)
        if now - newest.first >= GROUP_SECONDS:
            self._rate = self._complete(newest)
            self._groups.append(ItemGroup(now, now, newest.made + 1))
            return
        grown = ItemGroup(newest.first, now, newest.made + 1)
        if self._groups:
            self._groups[-1] = grown
        else:
            self._groups.append(grown)

    def rate(self, now: float) -> float:
        """Return items per second; 0: unknown."""
        newest = self._groups[-1] if self._groups else None
        if self._rate or newest is None or now - newest.first < GROUP_SECONDS:
            return self._rate
        return self._since_begun(newest)

    def is_steady(self, now: float) -> bool:
        """Return whether enough was made for an estimate of the time left."""
        seconds, made = now - self._begun, self._groups[-1].made if self._groups else 0
        return seconds >= (STEADY_SECONDS if made >= STEADY_ITEMS else SLOW_SECONDS)

    def _complete(self, newest: ItemGroup) -> float:
        """Return the rate up to the end of a group. The first group includes warm-up, so it is left
        out once there is another one."""
        back = max(WINDOW_SECONDS, (newest.last - self._begun) / 2)
        while len(self._groups) > 2 and newest.last - self._groups[1].last > back:
            self._groups.popleft()
        oldest = self._groups[0]
        if oldest.made == newest.made:
            return self._since_begun(newest)
        return (newest.made - oldest.made) / (newest.last - oldest.last)

    def _since_begun(self, newest: ItemGroup) -> float:
        seconds = newest.last - self._begun
        return newest.made / seconds if seconds > 0 else 0.0


REFRESH_PER_SECOND = 10
CELL_TICK_SECONDS = 1.0
"""Seconds between two texts of a cell's line while nothing happens."""
CELL_SECONDS = 0.5
"""Seconds between two texts of a cell's progress line: each is a message to the browser."""


class ProgressLine:
    """A progress line at the bottom of a terminal, above which other lines scroll."""

    def __init__(self, to: IO[str]) -> None:
        self._to = to
        self._progress: Progress | None = None
        self._task: Any = None

    def show(
        self, doing: str, status: Callable[[], str] = str, done: int = 0, total: int | None = None
    ) -> None:
        """Show the current step and its progress; without a `total`, the bar pulses. `status` is
        called at each redraw, on another thread."""
        if self._progress is None:
            self._to.write(f"  {doing}\r")  # importing rich takes a quarter of a second
            self._to.flush()
            self._progress = progress_on(self._to)
        if self._task is None:
            self._task = self._progress.add_task(doing, total=total, status=status)
            self._progress.start()
        self._progress.update(
            self._task, description=doing, completed=done, total=total, status=status
        )

    def line(self, text: str) -> None:
        """Write a permanent line above the progress line."""
        lines = fitted(text, self._to)
        if self._progress is None:
            self._to.write("\n".join(lines) + "\n")
            self._to.flush()
            return
        from rich.text import Text

        for line in lines:
            self._progress.console.print(Text.from_ansi(line), soft_wrap=True)

    def clear(self) -> None:
        if self._progress is not None and self._task is not None:
            self._progress.stop()
            self._progress.remove_task(self._task)
            self._task = None


class CellLine:
    """A progress line in the output of a notebook's cell, which is written over."""

    def __init__(self) -> None:
        self._output: Any = None
        self._text = ""
        self._at = 0.0

    def show(
        self, doing: str, status: Callable[[], str] = str, done: int = 0, total: int | None = None
    ) -> None:
        """Show the current step and its progress, at most once per CELL_SECONDS."""
        now = time.monotonic()
        if now - self._at >= CELL_SECONDS or done == total:
            self._at = now
            self.end(f"{doing} {status()}".rstrip())

    def line(self, text: str) -> None:
        print_lines(text)

    def clear(self) -> None:
        self._at = 0.0
        self.end("")

    def end(self, text: str) -> None:
        """Show a text at once, in place of the line."""
        if text == self._text:
            return
        from IPython.display import display

        self._text, data = text, {"text/plain": text}
        if self._output is None:
            self._output = display(data, raw=True, display_id=True)  # type: ignore[no-untyped-call]
        else:
            self._output.update(data, raw=True)


def progress_on(to: IO[str]) -> "Progress":
    """Return a rich progress line on a terminal."""
    from rich.console import Console, ConsoleDimensions
    from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
    from rich.table import Column
    from rich.text import Text

    class OneTerminal(Console):
        """A terminal that keeps its cursor visible, even if the program is killed."""

        def show_cursor(self, show: bool = True) -> bool:
            return False

        @property  # type: ignore[misc]
        def size(self) -> ConsoleDimensions:
            # rich reads the size from the standard streams, which may be redirected.
            return ConsoleDimensions(terminal_width(to), super().size.height)

    class ComputedColumn(ProgressColumn):
        """A column whose text is computed at each redraw."""

        def render(self, task: Task) -> Text:
            return Text(task.fields["status"](), no_wrap=True)

    console = OneTerminal(
        file=to,
        force_terminal=True,
        highlight=False,
        markup=False,
        emoji=False,
    )
    whole = Column(no_wrap=True, overflow="ellipsis")
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False, table_column=whole),
        BarColumn(bar_width=None),
        ComputedColumn(table_column=Column(no_wrap=True)),
        console=console,
        transient=True,
        expand=True,
        refresh_per_second=REFRESH_PER_SECOND,
    )


REDRAW_SECONDS = 0.1
READING = "reading the sources and the model"
"""Activity before the first stage."""
SILENT_SECONDS = 0.4
"""Seconds before a log names the activity before the first stage; most errors come sooner."""
LINE_SECONDS = 8.0
"""Seconds between two progress lines of a stage without a terminal."""
QUIET_SECONDS = 9.0
"""Seconds without a line, as while a model is loaded, after which one says what is going on."""
VERBS = {
    **{name: stage.verb for name, stage in STAGES.items()},
    "describe": "reading the model",
    "describe_gguf": "reading the GGUF file",
    "webdataset": "writing samples",
    "cut": "writing the data set",
    "convert": "converting",
    "merge": "merging the adapter",
}
COUNTS = {
    **{name: stage.counts for name, stage in STAGES.items()},
    "webdataset": "sample",
    "cut": CHUNK,
    "convert": "shard",
}
"""Stage → noun of its items."""


def _moving_line(to: IO[str], given: IO[str] | None) -> ProgressLine | CellLine | None:
    """Return the progress line for a stream; None where only lines can be written. `given`: the
    stream that the caller named; None: the standard error, which a cell's output replaces."""
    if given is None and in_cell():
        return CellLine()
    return ProgressLine(to) if is_terminal(to) and obeys_control_codes() else None


class Display:
    """A progress line on a terminal, plain lines elsewhere, JSON lines on request. Thread-safe."""

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
        self._to = lasting(to or sys.stderr or io.StringIO())
        self._json = as_json
        self._lasting = not quiet and not as_json
        """Whether permanent lines are written."""
        self._moving = None if as_json or (quiet and not fleeting) else _moving_line(self._to, to)
        self._cell: CellLine | None = None
        """The line of a run that is over."""
        self._plain = self._lasting and not self._moving
        self._lock = threading.RLock()
        self._stage = self._verb = self._counts = ""
        self._total = 0
        self._done = 0
        self._before = 0
        self._about = 0
        """Estimate of the total while files are read; 0: none."""
        self._started = 0.0
        self._worked: Callable[[], float] = lambda: 0.0
        self._pace = Pace(0.0)
        self._loading = ""
        """What the stage is loading before it begins; empty afterwards."""
        self._loading_since = 0.0
        """When its libraries were imported; 0: they are not yet."""
        self._waits = False
        """Whether it waits for its device."""
        self._shown = 0.0
        self._beside: dict[str, tuple[int, float]] = {}
        """Stages that began beside the one that is shown: items made, and when the first was."""
        self._failed: set[str] = set()
        """Files whose failure was printed."""
        self._fetch_total = 0
        self._fetch_before = 0
        self._fetch_started = 0.0
        self._doing = ""
        """Activity before or between stages."""
        self._doing_since = 0.0
        self._silence: threading.Timer | None = None
        """Waits until nothing was printed for too long."""
        self._printed = 0.0
        """When the last line was printed."""

    @property
    def has_line(self) -> bool:
        """Whether a line that is written over shows the run."""
        return (self._moving or self._cell) is not None

    def doing(self, text: str) -> None:
        """Show the activity before or between stages."""
        with self._lock:
            if self._stage:
                return
            if text != self._doing:
                self._doing, self._doing_since = text, time.monotonic()
            self._draw()
            self._watch(SILENT_SECONDS)

    def stage(
        self,
        name: str,
        total: int,
        done: int,
        *,
        loads: str = "",
        verb: str = "",
        counts: str | None = None,
        about: int = 0,
        worked: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """Begin a stage with `done` of `total` items finished. `about`: estimate of the total, if
        it begins with files, whose items it finds meanwhile, or if `total` is an estimate itself.
        `loads`: what it loads first. `verb` and `counts`: what it does, and the noun of its items,
        if not the usual. `worked` returns the seconds in which its processes worked, once they
        ended; 0: unknown."""
        with self._lock:
            self.close()
            self._loading_since, self._waits = 0.0, False
            self._loading, self._verb = loads, verb or VERBS.get(name, name)
            self._counts = COUNTS.get(name, "") if counts is None else counts
            now = time.monotonic()
            made, self._started = self._beside.pop(name, (0, now))
            done = max(done, made)
            self._stage, self._done, self._before = name, done, done - made
            self._about = about
            is_estimate = bool(about) and not _reads_files(name)
            self._total = done if is_estimate else total
            self._worked = worked
            self._shown = now
            self._pace = Pace(now)
            self._draw()
            self._emit({"event": "stage", "stage": name, "total": total, "done": done})
            if self._plain:
                before = self._before
                finished = self._counted(before) if _reads_files(name) else before
                already = f", {finished} already done" * bool(before)
                meanwhile = f", {made} done meanwhile" * bool(made)
                missing = self._counted(total - done, is_first=_reads_files(name))
                estimate = "about " * is_estimate
                self._line(f"{self._verb}: {estimate}{missing} to do{already}{meanwhile}")
            self._watch(QUIET_SECONDS)

    def on_event(self, name: str, event: Event) -> None:
        """Show an event of a stage process. Failures are shown with `fail`, by file name."""
        if isinstance(event, Item):
            self._advance(name, event)
        elif isinstance(event, StageNotes) and event.values.get("ready"):
            with self._lock:
                if name == self._stage:
                    self._loading = ""
                    self._pace.begin(time.monotonic())
                    self._draw()
        elif isinstance(event, StageNotes) and name == self._stage and "shards" not in event.values:
            with self._lock:
                self._waits = bool(event.values.get(WAITS_FOR_DEVICE))
                if "loaded_bytes" in event.values:
                    self._loading_since = time.monotonic()
                self._draw()
        elif isinstance(event, StageNotes) and "shards" in event.values:
            self.stage(name, event.values["shards"], event.values["there"])
        elif isinstance(event, Total):
            with self._lock:
                if name == self._stage and _reads_files(name):
                    self._total = self._before + event.items
        elif isinstance(event, Warned):
            self.print_line(event.text)

    def print_line(self, text: str) -> None:
        text = redacted(text)
        with self._lock:
            self._emit({"event": "message", "text": text})
            if self._lasting:
                self._line(text)

    def fail(self, *, media_path: str, message: str, hint: str, **_: Any) -> None:
        """Print the failure of a file, once per file."""
        if media_path in self._failed:
            return
        self.print_line(failed_line(media_path, message, hint))
        if self._lasting:
            self._failed.add(media_path)

    def has_failed(self, media_path: str) -> bool:
        """Return whether the failure of a file was printed."""
        return media_path in self._failed

    def fetched(self, here: int, total: int) -> None:
        """Show the progress of a download: `here` of `total` bytes."""
        with self._lock:
            now = time.monotonic()
            if total != self._fetch_total:
                self._fetch_total, self._fetch_before = total, here
                self._fetch_started = self._shown = now
            done = here >= total
            wait = REDRAW_SECONDS if self._moving or self._json else LINE_SECONDS
            if not done and now - self._shown < wait:
                return
            self._shown = now
            self._emit({"event": "download", "bytes": here, "total": total})
            text = self._fetch_text(here, now)
            if self._moving and not done:
                status = text.removeprefix("downloading ")
                self._moving.show("downloading", lambda: status, here, total)
            elif self._lasting:
                self._clear()
                self._line(text)
            if done:
                self._fetch_total = 0

    def _fetch_text(self, here: int, now: float) -> str:
        seconds = max(now - self._fetch_started, 1e-3)
        rate = (here - self._fetch_before) / seconds
        if here >= self._fetch_total:
            return f"downloaded {size(here)} in {duration(seconds)}"
        left = f"  {duration((self._fetch_total - here) / rate)} left" if rate > 0 else ""
        so_far = f"downloading {size(here)} of {size(self._fetch_total)}"
        return f"{so_far}  {size(round(max(rate, 0)))}/s{left}"

    def end(self, text: str) -> None:
        """Show a line in a cell's output that stays."""
        with self._lock:
            if isinstance(self._moving, CellLine):
                self._moving, self._cell = None, self._moving
            if self._cell is not None:
                self._cell.end(redacted(text))

    def close(
        self, stopped_at: Callable[[str], tuple[int, int, bool] | None] = lambda stage: None
    ) -> None:
        """End the progress line, and print the summary of the stage. `stopped_at` returns, for a
        stage that did not end, its items: done, all, and whether the latter is an estimate."""
        with self._lock:
            if self._silence:
                self._silence.cancel()
                self._silence = None
            self._doing = ""
            if self._fetch_total:  # the download was interrupted
                self._clear()
                self._fetch_total = 0
            self._clear()
            items = stopped_at(self._stage)
            if self._stage and (items or self._done > self._before) and self._lasting:
                seconds = self._worked() or time.monotonic() - self._started
                made = self._counted(self._done - self._before)
                if items:
                    made = f"{items[0]:,} of {'~' * items[2]}{self._counted(items[1])}"
                self._line(f"{self._verb}: {made} in {duration(seconds)}")
            self._stage = ""

    def _advance(self, name: str, event: Item) -> None:
        with self._lock:
            self._emit({"event": "item", "stage": name, "label": event.label})
            if name != self._stage:
                made, since = self._beside.get(name, (0, time.monotonic()))
                self._beside[name] = made + 1, since
                return
            self._done += 1
            self._loading = ""
            now = time.monotonic()
            self._pace.count(now)
            if self._moving:
                self._draw()
            elif self._plain and now - self._shown >= LINE_SECONDS:
                self._shown = now
                self._line(f"{self._verb} {self._progress()}")

    def _draw(self) -> None:
        if self._moving is None:
            return
        if not self._stage:
            self._moving.show(self._doing, partial(self._so_far, self._doing_since))
        elif self._loading:
            text, since = self._starting()
            self._moving.show(f"{self._verb}: {text}", partial(self._so_far, since))
        else:
            self._moving.show(
                self._verb, self._progress, self._done, max(self._total, self._about, self._done, 1)
            )

    def _starting(self) -> tuple[str, float]:
        """Return what a stage does before its first item, and since when."""
        if self._waits:
            return "waiting for its device", self._started
        if not self._loading_since:
            return "starting Python and torch", self._started
        return f"loading {self._loading}", self._loading_since

    def _so_far(self, since: float) -> str:
        return f"{duration(time.monotonic() - since)} so far"

    def _progress(self) -> str:
        """Return the progress as text. Also called by the redraw thread, which takes no lock."""
        known = max(self._total, self._done)
        total, about = max(known, self._about), "~" if self._about > known else ""
        text = f"{self._done}/{about}{total}"
        now = time.monotonic()
        if rate := self._pace.rate(now):
            text += f"  {pace(rate)}"
            if self._pace.is_steady(now):
                text += f"  {about}{duration((total - self._done) / rate)} left"
        for name, (made, _) in [*self._beside.items()]:
            text += f"  {VERBS.get(name, name)} {made}"
        return text

    def _counted(self, items: int, *, is_first: bool = False) -> str:
        """Return a number of items with their noun. `is_first`: they are files, which may have
        several chunks each."""
        noun = "file" if is_first and self._counts != "image" else self._counts
        return counted(items, noun) if noun else f"{items:,}"

    def _clear(self) -> None:
        if self._moving:
            self._moving.clear()

    def _watch(self, seconds: float) -> None:
        """Print what is going on after so many seconds without a line, and then again and again. A
        cell's line is written over each second."""
        is_cell = isinstance(self._moving, CellLine)
        if self._silence is None and (self._plain or is_cell):
            seconds = CELL_TICK_SECONDS if is_cell else seconds
            self._silence = threading.Timer(seconds, self._break_silence)
            self._silence.daemon = True
            self._silence.start()

    def _break_silence(self) -> None:
        with self._lock:
            if self._silence is None or self._silence.finished.is_set():
                return
            self._silence = None
            if self._moving:
                self._draw()
                self._watch(0)
                return
            now = time.monotonic()
            first = self._printed < self._doing_since
            if first or now - self._printed > QUIET_SECONDS - 0.1:
                self._shown = now
                self._line(self._activity(now, first))
            self._watch(max(0.1, QUIET_SECONDS - (time.monotonic() - self._printed)))

    def _activity(self, now: float, first: bool) -> str:
        if not self._stage:
            so_far = self._so_far(self._doing_since)
            return self._doing if first else f"{self._doing}: {so_far}"
        if self._loading:
            text, since = self._starting()
            return f"{self._verb}: {text}, {self._so_far(since)}"
        return f"{self._verb} {self._progress()}"

    def _line(self, text: str) -> None:
        self._printed = time.monotonic()
        if self._moving:
            self._moving.line(text)
        else:
            print_lines(text, to=self._to)

    def _emit(self, value: dict[str, Any]) -> None:
        if self._json:
            print(json.dumps(value), file=lasting(sys.stdout), flush=True)


def _reads_files(stage: str) -> bool:
    """Return whether a stage begins with files, so that its number of items is not known yet."""
    return stage in STAGES and STAGES[stage].of_media and not STAGES[stage].reads


def failed_line(media_path: str, message: str, hint: str) -> str:
    return f"failed: {media_path}: {with_hint(message, hint)}"
