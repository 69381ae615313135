"""Draws the line that moves on a terminal; decides nothing and knows no stage. It is rich's, which
is imported when there is something to draw."""

from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any

from flows.console.lines import fitted, terminal_width
from flows.console.terminal import outliving_the_terminal

if TYPE_CHECKING:
    from rich.progress import Progress

FRAMES_A_SECOND = 10


class MovingLine:
    """A line at the bottom of a terminal, above which others stay."""

    def __init__(self, to: IO[str]) -> None:
        self._to = Outliving(to)
        self._progress: Progress | None = None
        self._task: Any = None

    def show(
        self, doing: str, told: Callable[[], str] = str, done: int = 0, total: int | None = None
    ) -> None:
        """Show what is being done and how far it is; a bar runs to and fro without a `total`.
        `told` is asked at each drawing, from another thread."""
        if self._progress is None:
            self._to.write(f"  {doing}\r")  # rich takes a quarter of a second to import
            self._to.flush()
            self._progress = progress_on(self._to)
        if self._task is None:
            self._task = self._progress.add_task(doing, total=total, told=told)
            self._progress.start()
        self._progress.update(self._task, description=doing, completed=done, total=total, told=told)

    def line(self, text: str) -> None:
        """Write a line that stays."""
        lines = fitted(text, self._to.terminal)
        if self._progress is None:
            self._to.write("\n".join(lines) + "\n")
            self._to.flush()
            return
        from rich.text import Text

        for line in lines:
            self._progress.console.print(Text.from_ansi(line), soft_wrap=True)

    def clear(self) -> None:
        """Take the moving line away."""
        if self._progress is not None and self._task is not None:
            self._progress.stop()
            self._progress.remove_task(self._task)
            self._task = None


class Outliving:
    """A terminal that may be closed while it is written to."""

    def __init__(self, to: IO[str]) -> None:
        self.terminal = to

    def __getattr__(self, name: str) -> Any:
        return getattr(self.terminal, name)

    def write(self, text: str) -> int:
        with outliving_the_terminal():
            self.terminal.write(text)
        return len(text)

    def flush(self) -> None:
        with outliving_the_terminal():
            self.terminal.flush()


def progress_on(to: Outliving) -> "Progress":
    """Return rich's line on a terminal."""
    from rich.console import Console, ConsoleDimensions
    from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
    from rich.table import Column
    from rich.text import Text

    class OneTerminal(Console):
        """A terminal whose cursor stays visible, however the program ends."""

        def show_cursor(self, show: bool = True) -> bool:
            return False

        @property  # type: ignore[misc]
        def size(self) -> ConsoleDimensions:
            # rich asks the standard streams, which may lead elsewhere.
            return ConsoleDimensions(terminal_width(to.terminal), super().size.height)

    class ToldColumn(ProgressColumn):
        """A text that is asked for when it is drawn."""

        def render(self, task: Task) -> Text:
            return Text(task.fields["told"](), no_wrap=True)

    console = OneTerminal(
        file=to,  # type: ignore[arg-type]
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
        ToldColumn(table_column=Column(no_wrap=True)),
        console=console,
        transient=True,
        expand=True,
        refresh_per_second=FRAMES_A_SECOND,
    )
