"""Reports a run to other programs: `--metrics-file` while it works, `--notify` at its end.

Neither decides what the run makes or how it ends. Both are options of this process alone: no
configuration has them, so no record, page or deployment can set them.
"""

import argparse
import os
import shlex
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from artifacts.disk.files import METRICS, encoded, whole_file
from artifacts.disk.json_shapes import Json
from artifacts.errors import EnvironmentFault, Interrupted, PenstockError, UsageError, redacted
from artifacts.packages import require
from flows.commands.shared.exit_report import exit_code_of
from flows.core.console.lines import print_lines
from flows.core.options.vectors import PARENT
from flows.execution.run import stopped_in_order
from flows.outputs.record.record_writer import RecordWriter
from flows.outputs.record.recorded_command import command_of
from flows.outputs.record.run_read import load_record
from flows.outputs.record.run_record import RunRecord, State
from flows.outputs.run_metrics import metrics_text
from flows.outputs.run_status import stages_of
from flows.outputs.run_wording import written

METRICS_SECONDS = 10.0
"""Seconds between two writes of the metrics file."""
POST_SECONDS = 10.0
"""Longest time that a notification may take."""
HEAD = b"# HELP penstock_run_"
"""Begin of every metrics file."""


def monitored(given: argparse.Namespace, command: Callable[[argparse.Namespace], int]) -> int:
    """Run a command as its options of reporting say, and return its exit code. Its error is
    printed. Raises UsageError and EnvironmentFault before the command runs."""
    monitor = Monitor.of(given)
    monitor.begin()
    try:
        with stopped_in_order():  # also before and after what it does itself
            code = command(given)
        monitor.error = getattr(given, "missed", "")
    except (Exception, KeyboardInterrupt) as error:
        is_ours = isinstance(error, PenstockError)
        monitor.error = str(error) if is_ours else redacted(f"{type(error).__name__}: {error}")
        code = exit_code_of(error)
    with suppress(KeyboardInterrupt, Interrupted), stopped_in_order():
        monitor.end(code)
    return code


@dataclass(kw_only=True, slots=True)
class Monitor:
    """One run of a command, and to whom it is reported."""

    command: str
    line: str
    """The command as it is typed, or its name if that holds credentials."""
    out: str
    metrics_file: Path | None
    url: str
    started: float = field(default_factory=time.time)
    ended: float = 0.0
    """When the command ended; 0: not yet."""
    exit_code: int = 0
    error: str = ""
    """Why the command raised an error or missed its quality limit; empty: it did neither."""
    record: RunRecord | None = None
    """The record of the run that the command began last; None before the first."""
    folder: Path = Path()
    """Folder of that run."""
    over: threading.Event = field(default_factory=threading.Event)
    _writer: threading.Thread | None = None
    """Writes the metrics file until it is `over`."""

    @classmethod
    def of(cls, given: argparse.Namespace) -> "Monitor":
        """Return the monitor of a command. Raises UsageError."""
        words = command_of(given.words)
        name = [given.command, *filter(None, [getattr(given, "action", None)])]
        out = getattr(given, "out", None) or getattr(given, "index", None) or PARENT
        file = given.metrics_file
        return cls(
            command=" ".join(name),
            line=_utf8(shlex.join(["penstock", *(words.words if words else name)])),
            out=os.path.abspath(os.path.expanduser(out)),
            metrics_file=Path(file).expanduser().absolute() if file else None,
            url=checked_url(given.notify) if given.notify else "",
        )

    @property
    def state(self) -> State:
        if not self.ended:
            return "running"
        if not (self.error and self.exit_code):
            return "done"
        return "interrupted" if self.exit_code == Interrupted.exit_code else "failed"

    def note(self, folder: Path, record: RunRecord) -> None:
        """Take the record of a run that begins, unless it is in another folder: a search of an
        index has its run in a temporary one."""
        if Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(self.out)):
            self.record, self.folder = record, folder

    def current(self) -> RunRecord | None:
        """Return the record as it is now. Of a run in partitions, other processes write it."""
        if self.record is not None and self.record.partitions is not None:
            with suppress(PenstockError):
                return load_record(self.folder)
        return self.record

    def begin(self) -> None:
        """Write the metrics file, and again and again from now on. Raises UsageError for a file
        with another suffix or content, EnvironmentFault."""
        if (path := self.metrics_file) is not None:
            require("--metrics-file", "prometheus_client", extra="serve")
            refuse_other_file(path)
            try:
                self._write(path)
            except EnvironmentFault as error:
                hint = "Give a file in a folder that you may write to"
                raise EnvironmentFault(f"--metrics-file: {error.message}", hint=hint) from error
            self._writer = threading.Thread(target=self._keep_writing, args=[path], daemon=True)
            self._writer.start()
        RecordWriter.on_begin = self.note

    def end(self, code: int) -> None:
        """Report the end of the command. What fails is one line of warning."""
        self.over.set()
        RecordWriter.on_begin = None
        if self._writer is not None:
            self._writer.join(METRICS_SECONDS)  # it would replace the last metrics by earlier ones
        self.ended, self.exit_code = time.time(), code
        if self.metrics_file is not None:
            try:
                self._write(self.metrics_file)
            except EnvironmentFault as error:
                print_lines(f"warning: --metrics-file: {error.message}", to=sys.stderr)
        if self.url and (why := post(self.url, self.notice())):
            print_lines(f"warning: --notify: {why}; the run is not affected", to=sys.stderr)

    def notice(self) -> dict[str, Json]:
        """Return what is posted at the end."""
        record = self.current()
        counts: dict[str, Json] = {}
        if record is not None:
            stages = stages_of(record, self.ended)
            counts = {
                "files": record.media.total,
                "files_failed": record.media.failed,
                "rows": written(record)[0],
                "done": {stage.name: stage.done for stage in stages},
                "pending": {stage.name: stage.pending for stage in stages},
            }
        return {
            "event": "end",
            "state": self.state,
            "exit_code": self.exit_code,
            "error": self.error if self.state != "done" else "",
            "command": self.line,
            "out": _utf8(self.out),
            "host": socket.gethostname(),
            "started": round(self.started, 3),
            "seconds": round(self.ended - self.started, 3),
            "counts": counts,
        }

    def _keep_writing(self, path: Path) -> None:
        while not self.over.wait(METRICS_SECONDS):
            with suppress(EnvironmentFault):  # the last write reports it
                self._write(path)

    def _write(self, path: Path) -> None:
        times = {"start_time_seconds": self.started}
        if self.ended:
            times |= {"end_time_seconds": self.ended, "exit_code": self.exit_code}
        labels = {"command": self.command, "out": _utf8(self.out)}
        text = metrics_text(self.current(), labels, self.state, times)
        with whole_file(path) as file:
            file.write(text)


def refuse_other_file(path: Path) -> None:
    """Raise UsageError for a file with another suffix, which node_exporter would not read and an
    output may have, and for one that is there and holds no metrics of a run."""
    if path.suffix != METRICS:
        hint = f"node_exporter reads no other; give one such as penstock{METRICS}"
        raise UsageError(f"--metrics-file {path} does not end in {METRICS}", hint=hint)
    head = HEAD
    with suppress(OSError):  # writing reports it
        if path.is_file():
            with path.open("rb") as file:
                head = file.read(len(HEAD)) or HEAD
    if head != HEAD:
        hint = f"Give a new file, such as penstock{METRICS}"
        raise UsageError(f"--metrics-file {path} holds something else", hint=hint)


def _utf8(text: str) -> str:
    """Return a text in which `?` replaces the bytes of a name that are no UTF-8."""
    return os.fsencode(text).decode(errors="replace")


def checked_url(url: str) -> str:
    """Return an address of http or https. Raises UsageError for any other, without printing it."""
    from httpx2 import URL, InvalidURL

    try:
        parts = URL(url)
        is_web = parts.scheme in ("http", "https") and bool(parts.host)
        is_web = is_web and (parts.port or 1) < 1 << 16
    except InvalidURL:
        is_web = False
    if not is_web:
        raise UsageError(
            "--notify is no address of http or https", hint="Give one such as https://HOST/PATH"
        )
    return url


def post(url: str, notice: dict[str, Json]) -> str:
    """Post JSON within POST_SECONDS. Follow no redirect: it may lead to another host. Return why it
    was not accepted, without the address; empty if it was."""
    import httpx2

    whys = list[str]()

    def send() -> None:
        head = {"content-type": "application/json"}
        body = encoded(notice, ensure_ascii=True).encode()
        try:
            with httpx2.stream(
                "POST", url, content=body, headers=head, timeout=POST_SECONDS
            ) as answer:
                code = answer.status_code
                whys.append("" if answer.is_success else f"the server answered {code}")
        except Exception as error:  # also of a proxy in the environment: an address, a package
            whys.append(redacted(f"{error}" or type(error).__name__))

    # The timeouts of the client begin anew with each byte, and it has none for names.
    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    thread.join(POST_SECONDS)
    return whys[0] if whys else f"no answer within {POST_SECONDS:g} s"
