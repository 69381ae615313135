"""Shows a run in Prefect: progress bars, a page at its end, and log lines."""

import contextvars
import functools
import io
import logging
import re
import shlex
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from uuid import UUID

from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    update_progress_artifact,
)
from prefect.logging.handlers import PrefectConsoleHandler

from artifacts.disk.json_shapes import Json
from artifacts.texts.captions import Failure
from flows.core.console.lines import printable
from flows.interfaces.prefect.crashed import without_retries

logger = logging.getLogger(__name__)

LAST_STEP_SECONDS = 2.0
"""Seconds that the end of a stage waits for its progress bar."""
MAX_FAILURES = 200
"""Failures that a page lists; failures.jsonl has the rest."""
REPORT = "report.html"
MARKUP = re.compile(
    r"\\(?=_|[^\w\s])|[`*<~]|\[(?=[^]]*][(:\[])|&(?=#?\w+;)|(?<![^\W_])_|_(?![^\W_])|^[#>+-]"
)
"""Characters with a meaning in markdown. One of Prefect's two UIs renders table cells as markdown;
the other shows every backslash, so only what is needed is escaped."""
LISTED = re.compile(r"^(\d+)([.)])(?=\s)")
"""The beginning of a numbered list."""


class Progress:
    """A progress bar in the UI, shown once there is something to count. A separate thread draws it,
    so that a slow server delays the bar and not the stage."""

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._artifact: UUID | None = None
        self._target: float | None = None
        self._changed = threading.Event()
        self._closed = False
        context = contextvars.copy_context()  # it contains the flow run of the bar
        self._thread = threading.Thread(
            target=context.run, args=(self._follow,), name=f"bar-{stage}", daemon=True
        )
        self._thread.start()

    def report(self, done: int, total: int) -> None:
        """Set the progress without waiting."""
        if total:
            self._target = 100 * done / total
            self._changed.set()

    def close(self) -> None:
        """Wait briefly for the bar's last step."""
        self._closed = True
        self._changed.set()
        self._thread.join(LAST_STEP_SECONDS)

    def _follow(self) -> None:
        drawn: float | None = None
        missed = False
        while not self._closed or self._target != drawn:
            self._changed.wait()
            self._changed.clear()
            target = self._target
            if target is None or target == drawn:
                continue
            try:
                with without_retries():
                    self._draw(target)
            except Exception as error:
                if not missed:
                    logger.warning("progress of %s was not stored: %s", self._stage, error)
                missed = True
                if self._closed and target == self._target:
                    return
            else:
                drawn = target

    def _draw(self, percent: float) -> None:
        if self._artifact is not None:
            update_progress_artifact(self._artifact, percent)
            return
        key = f"penstock-{self._stage.replace('_', '-')}"  # Prefect accepts only dashes in keys
        artifact = create_progress_artifact(percent, key=key, description=self._stage)
        assert isinstance(artifact, UUID)  # it is a coroutine only for async callers
        self._artifact = artifact


class RunLog(io.StringIO):
    """A stream whose lines go to the log of the flow run, which the UI shows."""

    def __init__(self, log: "logging.Logger | logging.LoggerAdapter[logging.Logger]") -> None:
        super().__init__()
        self._log = log
        # Once the terminal is gone, as after the worker was killed, rich would end the thread that
        # writes a line, and with it the stage of that thread.
        for handler in console_handlers():
            console = handler.console
            vars(console)["on_broken_pipe"] = functools.partial(setattr, console, "quiet", True)

    def write(self, text: str) -> int:
        for line in filter(None, text.splitlines()):
            self._log.info("%s", line)
        return len(text)


def show(text: str, key: str) -> None:
    """Create a page in the UI. If the server does not respond, the run continues without it."""
    try:
        with without_retries():
            create_markdown_artifact(text, key=key, description="What the run made")
    except Exception as error:
        logger.warning("the page of the run was not stored: %s", error)


def page(
    line: str, counts: Mapping[str, Json], failures: Sequence[Failure], out: Path | None = None
) -> str:
    """Return the end of a run in markdown: its last line, counts, failures with their reasons and
    hints, and where its report is. Long texts are lines, which wrap: Prefect cuts table cells at
    the page's edge."""
    lines = [f"{failure.media_path}: {failure.message}. {failure.hint}" for failure in failures]
    if (rest := len(lines) - MAX_FAILURES) > 0:
        lines[MAX_FAILURES:] = [f"{rest} more: Read failures.jsonl"]
    report = ""
    if out is not None:
        report_file = out / REPORT
        written = (
            report_file if report_file.is_file() else f"penstock report {shlex.quote(str(out))}"
        )
        report = plain(f"HTML report: {written}")
    parts = [
        plain(line),
        "\n".join(f"- {plain(f'{name}: {value}')}" for name, value in counts.items()),
        "\n".join(["**Failed**\n", *(f"- {plain(text)}" for text in lines)] if lines else []),
        report,
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def plain(text: str) -> str:
    """Return a text escaped for markdown, in one line. Control characters, which some databases
    refuse, become question marks."""
    escaped = MARKUP.sub(lambda match: f"\\{match.group()}", printable(text).strip())
    return LISTED.sub(r"\1\\\2", escaped)


def quiet_console(log_line: Callable[[str], None]) -> None:
    """Keep Prefect's own lines off the terminal. The log in the UI still gets them. `log_line` is
    called once if the server missed updates."""
    for handler in console_handlers():
        handler.setLevel(logging.CRITICAL + 1)
    # Its threads bypass the console and write a line for every lost event.
    logging.getLogger("prefect._internal").handlers = [Missed(log_line)]
    logging.raiseExceptions = False  # Prefect checks it before it reports a lost line


class Missed(logging.Handler):
    """A log handler that reports once that the server did not receive every update."""

    def __init__(self, log_line: Callable[[str], None]) -> None:
        super().__init__(logging.ERROR)
        self._log_line = log_line
        self._reported = False

    def emit(self, record: logging.LogRecord) -> None:
        if not self._reported:
            self._reported = True
            self._log_line(
                "the Prefect server stopped responding: its UI shows only a part of this run"
            )


def console_handlers() -> list[PrefectConsoleHandler]:
    loggers = map(logging.getLogger, ("", "prefect", "uvicorn", "fastapi"))
    handlers = [handler for logger in loggers for handler in logger.handlers]
    return [handler for handler in handlers if isinstance(handler, PrefectConsoleHandler)]
