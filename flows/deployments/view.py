"""Shows a run in Prefect: progress bars, a table, and log lines."""

import contextvars
import functools
import io
import logging
import re
import threading
from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

from prefect.artifacts import (
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.logging.handlers import PrefectConsoleHandler

from artifacts.captions import Failure
from flows.console.lines import printable
from flows.deployments.patience import impatient

logger = logging.getLogger(__name__)

LAST_STEP_SECONDS = 2.0
"""Seconds that the end of a stage waits for its bar."""
TABLE_ROWS = 200
"""Rows of the UI's table; the rest is in the output files."""
MARKUP = re.compile(
    r"\\(?=_|[^\w\s])|[`*<~]|\[(?=[^]]*][(:\[])|&(?=#?\w+;)|(?<![^\W_])_|_(?![^\W_])|^[#>+-]"
)
"""Characters that markdown takes for itself. One of Prefect's two UIs reads table cells as
markdown, the other shows every backslash, so no more is escaped than must be."""
LISTED = re.compile(r"^(\d+)([.)])(?=\s)")
"""The beginning of a numbered list."""


class Progress:
    """A progress bar in the UI, shown once there is something to count. A separate thread draws it,
    so that a slow server delays the bar and not the stage."""

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._artifact: UUID | None = None
        self._wanted: float | None = None
        self._changed = threading.Event()
        self._closed = False
        context = contextvars.copy_context()  # it names the run that the bar belongs to
        self._thread = threading.Thread(
            target=context.run, args=(self._follow,), name=f"bar-{stage}", daemon=True
        )
        self._thread.start()

    def tell(self, done: int, total: int) -> None:
        """Tell how much is done; never waits."""
        if total:
            self._wanted = 100 * done / total
            self._changed.set()

    def close(self) -> None:
        """Wait for the bar's last step, but not for a server that is away."""
        self._closed = True
        self._changed.set()
        self._thread.join(LAST_STEP_SECONDS)

    def _follow(self) -> None:
        told: float | None = None
        missed = False
        while not self._closed or self._wanted != told:
            self._changed.wait()
            self._changed.clear()
            wanted = self._wanted
            if wanted is None or wanted == told:
                continue
            try:
                with impatient():
                    self._draw(wanted)
            except Exception as error:
                if not missed:
                    logger.warning("progress of %s was not taken: %s", self._stage, error)
                missed = True
                if self._closed and wanted == self._wanted:
                    return
            else:
                told = wanted

    def _draw(self, percent: float) -> None:
        if self._artifact is not None:
            update_progress_artifact(self._artifact, percent)
            return
        key = f"penstock-{self._stage.replace('_', '-')}"  # Prefect takes no other mark in one
        made = create_progress_artifact(percent, key=key, description=self._stage)
        assert isinstance(made, UUID)  # a coroutine only where the caller is one
        self._artifact = made


class RunLog(io.StringIO):
    """A stream whose lines go to the log of the flow run, which the UI shows."""

    def __init__(self, log: "logging.Logger | logging.LoggerAdapter[Any]") -> None:
        super().__init__()
        self._log = log
        outlive_readers()

    def write(self, text: str) -> int:
        for line in text.splitlines():
            self._log.info("%s", line)
        return len(text)


def show(rows: list[dict[str, Any]], line: str, key: str) -> None:
    """Put a table into the UI. A server that does not answer costs the table, not the run."""
    try:
        with impatient():
            create_table_artifact(table=rows, key=key, description=plain(line))
    except Exception as error:
        logger.warning("the table was not taken: %s", error)


def table(failures: Sequence[Failure]) -> list[dict[str, Any]]:
    """Return what failed, why, and what to do."""
    rows = [
        {"file": plain(f.media_path), "what": plain(f.message), "what to do": plain(f.hint)}
        for f in failures[:TABLE_ROWS]
    ]
    rest = len(failures) - len(rows)
    if rest:
        rows.append({"file": f"{rest} more", "what": "failed", "what to do": "Read failures.jsonl"})
    return rows


def plain(text: str) -> str:
    """Return a text that markdown shows as it is, in one line. Control characters, which some
    databases do not take, become question marks."""
    escaped = MARKUP.sub(lambda found: f"\\{found.group()}", printable(text).strip())
    return LISTED.sub(r"\1\\\2", escaped)


def outlive_readers() -> None:
    """Let the log's lines go nowhere when nobody reads them any more. After the worker is killed,
    rich would end the thread that writes one, and with it the stage that it listens to."""
    for handler in console_handlers():
        console = handler.console
        vars(console)["on_broken_pipe"] = functools.partial(setattr, console, "quiet", True)


def quiet_console(say: Callable[[str], None]) -> None:
    """Keep Prefect's own lines off the terminal for good. The log that the UI shows gets them
    still. `say` is told once when a server has missed some."""
    for handler in console_handlers():
        handler.setLevel(logging.CRITICAL + 1)
    # Its threads write past the console, a line for every event that was not taken.
    logging.getLogger("prefect._internal").handlers = [Missed(say)]
    logging.raiseExceptions = False  # what it asks before it says that a line was not taken


class Missed(logging.Handler):
    """A log handler that reports once that the server did not receive every update."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.ERROR)
        self._say = say
        self._said = False

    def emit(self, record: logging.LogRecord) -> None:
        if not self._said:
            self._said = True
            self._say(
                "the Prefect server stopped answering: its UI shows less of this run than there is"
            )


def console_handlers() -> list[PrefectConsoleHandler]:
    loggers = map(logging.getLogger, ("", "prefect", "uvicorn", "fastapi"))
    handlers = [handler for logger in loggers for handler in logger.handlers]
    return [handler for handler in handlers if isinstance(handler, PrefectConsoleHandler)]
