"""Shows the progress of a run in one of five modes, which `mode_for` chooses once: not at all, as
JSON lines, as the plain lines of a log, as a line at the bottom of a terminal, or as one in the
output of a notebook's cell.
"""

import json
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from flows.core.console.lines import (
    fitted,
    in_cell,
    is_terminal,
    obeys_control_codes,
    print_lines,
    terminal_width,
)
from stages.process.output_streams import lasting

if TYPE_CHECKING:
    from rich.progress import Progress

REFRESH_PER_SECOND = 10
REDRAW_SECONDS = 0.1
"""Seconds between two states of a download, on a line that is written over or in JSON."""
LINE_SECONDS = 8.0
"""Seconds between two progress lines in a log."""
SILENT_SECONDS = 0.4
"""Seconds before a log names the activity before the first stage; most errors come sooner."""
QUIET_SECONDS = 9.0
"""Seconds without a line, as while a model is loaded, after which one says what is going on."""
CELL_TICK_SECONDS = 1.0
"""Seconds between two texts of a cell's line while nothing happens."""
CELL_SECONDS = 0.5
"""Seconds between two texts of a cell's progress line: each is a message to the browser."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What is going on, and how far it is."""

    doing: str
    status: Callable[[], str]
    """Returns how far it is; called at each redraw, on another thread."""
    done: int = 0
    total: int | None = None
    """Number of items; None: unknown, so that a bar pulses."""
    joint: str = " "
    """What stands between the two in a log."""
    begun: float = 0.0
    """When an activity outside of stages began, which a log names once before it shows its time;
    0: a stage."""

    @property
    def text(self) -> str:
        return f"{self.doing}{self.joint}{self.status()}"


class Quiet:
    """The mode that shows nothing. The others replace the methods of what they show."""

    is_lasting = False
    """Whether lines are written that stay."""
    has_line = False
    """Whether a line that is written over shows the run."""
    download_seconds = LINE_SECONDS
    """Seconds after which a download is shown again."""

    def event(self, value: Mapping[str, Any]) -> None:
        """Report to another program what happened."""

    def line(self, text: str) -> None:
        """Write a line that stays."""

    def begin(self, text: str) -> None:
        """Say what a stage has to do, where no line shows it."""

    def show(self, step: Step) -> None:
        """Show what is going on from now on."""

    def advance(self, step: Step) -> None:
        """Show that another item was made."""
        self.show(step)

    def download(self, step: Step) -> None:
        """Show how far a download is, or what it was."""

    def close(self) -> None:
        """End what is written over."""

    def end(self, text: str) -> None:
        """Leave a text in place of a cell's line, which is not written over any more."""


class JsonLines(Quiet):
    """What happens as JSON lines on the standard output."""

    download_seconds = REDRAW_SECONDS

    def event(self, value: Mapping[str, Any]) -> None:
        print(json.dumps(value), file=lasting(sys.stdout), flush=True)


class PlainLines(Quiet):
    """The lines of a log, which is never silent for long."""

    is_lasting = True

    def __init__(self, to: IO[str]) -> None:
        self._to = to
        self._lock = threading.RLock()
        self._step: Step | None = None
        self._printed = 0.0
        """When the last line was printed."""
        self._shown = 0.0
        """When it last showed how far a stage is."""
        self._silence: threading.Timer | None = None
        """Waits until nothing was printed for too long."""

    def line(self, text: str) -> None:
        with self._lock:
            self._printed = time.monotonic()
            print_lines(text, to=self._to)

    def begin(self, text: str) -> None:
        with self._lock:
            self._shown = time.monotonic()
            self.line(text)

    def show(self, step: Step) -> None:
        with self._lock:
            self._step = step
            if self._silence is None:
                self._watch(SILENT_SECONDS if step.begun else QUIET_SECONDS)

    def advance(self, step: Step) -> None:
        with self._lock:
            self.show(step)
            if time.monotonic() - self._shown >= LINE_SECONDS:
                self.begin(step.text)

    def download(self, step: Step) -> None:
        self.line(step.text)

    def close(self) -> None:
        with self._lock:
            if self._silence is not None:
                self._silence.cancel()
            self._silence = self._step = None

    def _watch(self, seconds: float) -> None:
        """Print what is going on after so many seconds without a line, and then again and again."""
        self._silence = threading.Timer(seconds, self._break_silence)
        self._silence.daemon = True
        self._silence.start()

    def _break_silence(self) -> None:
        with self._lock:
            if self._silence is None or self._silence.finished.is_set() or self._step is None:
                return
            is_first = self._printed < self._step.begun
            if is_first or time.monotonic() - self._printed > QUIET_SECONDS - 0.1:
                self.begin(self._step.doing if is_first else self._step.text)
            self._watch(max(0.1, QUIET_SECONDS - (time.monotonic() - self._printed)))


class TerminalLine(Quiet):
    """A progress line at the bottom of a terminal, above which other lines scroll."""

    has_line = True
    download_seconds = REDRAW_SECONDS

    def __init__(self, to: IO[str], *, is_lasting: bool) -> None:
        self._to = to
        self.is_lasting = is_lasting
        self._progress: Progress | None = None
        self._task: Any = None

    def line(self, text: str) -> None:
        if not self.is_lasting:
            return
        lines = fitted(text, self._to)
        if self._progress is None:
            self._to.write("\n".join(lines) + "\n")
            self._to.flush()
            return
        from rich.text import Text

        for line in lines:
            self._progress.console.print(Text.from_ansi(line), soft_wrap=True)

    def show(self, step: Step) -> None:
        if self._progress is None:
            self._to.write(f"  {step.doing}\r")  # importing rich takes a quarter of a second
            self._to.flush()
            self._progress = progress_on(self._to)
        if self._task is None:
            self._task = self._progress.add_task(step.doing, total=step.total, status=step.status)
            self._progress.start()
        self._progress.update(
            self._task,
            description=step.doing,
            completed=step.done,
            total=step.total,
            status=step.status,
        )

    def download(self, step: Step) -> None:
        if step.done != step.total:
            self.show(step)
        elif self.is_lasting:
            self.close()
            self.line(step.text)

    def close(self) -> None:
        if self._progress is not None and self._task is not None:
            self._progress.stop()
            self._progress.remove_task(self._task)
            self._task = None


class CellLine(Quiet):
    """A progress line in the output of a notebook's cell, which is written over, at least once per
    CELL_TICK_SECONDS and at most once per CELL_SECONDS."""

    has_line = True
    download_seconds = REDRAW_SECONDS

    def __init__(self, *, is_lasting: bool) -> None:
        self.is_lasting = is_lasting
        self._lock = threading.RLock()
        self._output: Any = None
        self._text = ""
        self._at = 0.0
        """When the text was written; 0: there is none."""
        self._step: Step | None = None
        self._tick: threading.Timer | None = None
        self._is_over = False
        """Whether the text stays, because the run has ended."""

    def line(self, text: str) -> None:
        if self.is_lasting:
            print_lines(text)

    def show(self, step: Step) -> None:
        with self._lock:
            self._step = step
            self._draw(step)
            if self._tick is None and not self._is_over:
                self._wait()

    def download(self, step: Step) -> None:
        with self._lock:
            if step.done != step.total:
                self._draw(step)
            elif self.is_lasting:
                self._clear()
                self.line(step.text)

    def close(self) -> None:
        with self._lock:
            if self._tick is not None:
                self._tick.cancel()
            self._tick = self._step = None
            self._clear()

    def end(self, text: str) -> None:
        with self._lock:
            self._is_over = True
            self._write(text)

    def _wait(self) -> None:
        self._tick = threading.Timer(CELL_TICK_SECONDS, self._draw_again)
        self._tick.daemon = True
        self._tick.start()

    def _draw_again(self) -> None:
        with self._lock:
            if self._tick is None or self._tick.finished.is_set() or self._step is None:
                return
            self._draw(self._step)
            self._wait()

    def _draw(self, step: Step) -> None:
        now = time.monotonic()
        if not self._is_over and (now - self._at >= CELL_SECONDS or step.done == step.total):
            self._at = now
            self._write(f"{step.doing} {step.status()}".rstrip())

    def _clear(self) -> None:
        if not self._is_over:
            self._at = 0.0
            self._write("")

    def _write(self, text: str) -> None:
        if text == self._text:
            return
        from IPython.display import display

        self._text, data = text, {"text/plain": text}
        if self._output is None:
            self._output = display(data, raw=True, display_id=True)  # type: ignore[no-untyped-call]
        else:
            self._output.update(data, raw=True)


def mode_for(to: IO[str], *, quiet: bool, as_json: bool, fleeting: bool, is_named: bool) -> Quiet:
    """Return the mode for a stream. `quiet`: nothing that stays is written, and nothing at all
    unless a line may be `fleeting`. `is_named`: a caller chose the stream; the standard error is
    replaced by a cell's output."""
    if as_json:
        return JsonLines()
    if quiet and not fleeting:
        return Quiet()
    if not is_named and in_cell():
        return CellLine(is_lasting=not quiet)
    if is_terminal(to) and obeys_control_codes():
        return TerminalLine(to, is_lasting=not quiet)
    return Quiet() if quiet else PlainLines(to)


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

    console = OneTerminal(file=to, force_terminal=True, highlight=False, markup=False, emoji=False)
    column = Column(no_wrap=True, overflow="ellipsis")
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False, table_column=column),
        BarColumn(bar_width=None),
        ComputedColumn(table_column=Column(no_wrap=True)),
        console=console,
        transient=True,
        expand=True,
        refresh_per_second=REFRESH_PER_SECOND,
    )
