"""Draws the line that moves on a terminal; decides nothing and knows no stage. It is rich's, which
is imported when there is a terminal."""

from typing import IO, Any

from flows.console.terminal import outliving_the_terminal

FRAMES_A_SECOND = 10


class MovingLine:
    """A line at the bottom of a terminal, above which others stay."""

    def __init__(self, to: IO[str]) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
        from rich.table import Column

        class Visible(Console):
            """A terminal whose cursor stays visible, however the program ends."""

            def show_cursor(self, show: bool = True) -> bool:
                return False

        self._console = Visible(
            file=Outliving(to),  # type: ignore[arg-type]
            force_terminal=True,
            highlight=False,
            markup=False,
            emoji=False,
        )
        whole = Column(no_wrap=True, overflow="ellipsis")
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False, table_column=whole),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[told]}", markup=False, table_column=Column(no_wrap=True)),
            console=self._console,
            transient=True,
            expand=True,
            refresh_per_second=FRAMES_A_SECOND,
        )
        self._task: Any = None

    def show(self, doing: str, told: str, done: int = 0, total: int | None = None) -> None:
        """Show what is being done and how far it is; a bar runs to and fro without a `total`."""
        if self._task is None:
            self._task = self._progress.add_task(doing, total=total, told=told)
            self._progress.start()
        self._progress.update(self._task, description=doing, completed=done, total=total, told=told)

    def line(self, text: str) -> None:
        """Write a line that stays."""
        self._console.print(text, soft_wrap=True)

    def clear(self) -> None:
        """Take the moving line away."""
        if self._task is not None:
            self._progress.stop()
            self._progress.remove_task(self._task)
            self._task = None


class Outliving:
    """A terminal that may be closed while it is written to."""

    def __init__(self, to: IO[str]) -> None:
        self._to = to

    def __getattr__(self, name: str) -> Any:
        return getattr(self._to, name)

    def write(self, text: str) -> int:
        with outliving_the_terminal():
            self._to.write(text)
        return len(text)

    def flush(self) -> None:
        with outliving_the_terminal():
            self._to.flush()
