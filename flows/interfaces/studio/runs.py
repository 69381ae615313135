"""Runs commands one after another, as the processes that the command line starts.

A run goes on when this server is killed, and is found again. How it works:

1. The queue is a file, replaced whole, so a killed server continues it. It lies in the user's state
   folder, by the real path of the output folder: whoever fills an output folder adds no command.
   Each command in it is a record in which every field has a shape.
2. Before a run starts, the server takes the lock of its queue, which lies in the output folder, and
   hands it to the run's process. The kernel keeps it until that process ends. A later server finds
   the lock held and waits.
3. How a run ended is read from its `run.json`; a run that wrote none has its last line in its log.

A plan is made by the command that makes plans, in a process that ends with the request.
"""

import asyncio
import contextlib
import functools
import json
import os
import secrets
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from msgspec import Meta

from artifacts.digests import digest_of
from artifacts.disk.faults import disk_faults
from artifacts.disk.files import write_json
from artifacts.disk.json_records import read_json_file
from artifacts.disk.json_shapes import Json
from artifacts.disk.json_types import Count, Text
from artifacts.disk.locks import try_lock
from artifacts.disk.paths import user_state
from artifacts.disk.regular_files import guard, is_denied, last_line, open_below
from artifacts.errors import EnvironmentFault, PenstockError, UsageError
from flows.commands.shared.parser import program
from flows.core.machine.processes import start_of
from flows.core.machine.versions import now, seconds_of
from flows.core.options.model import DEMO_MODEL
from flows.core.options.vectors import PLACE
from flows.interfaces.studio.values import line_of
from flows.outputs.folder.foreign_files import KEPT_FILE
from flows.outputs.record.product import product_in, run_of
from flows.outputs.record.recorded_command import COMMAND
from flows.outputs.record.run_read import load_record
from flows.outputs.record.run_record import RunRecord
from flows.outputs.run_status import progress_of

AGAIN: Final = "again"
"""Kind of a run that asks again about some captions of another."""
SUMMED_UP = ("learn", "sift", "export", "tune")
"""Kinds of runs whose last line says what came of them."""
Kind = Literal["caption", "write", "again", "learn", "sift", "export", "tune"]
State = Literal["queued", "starting", "running", "done", "failed", "interrupted", "died"]
QUEUED: Final = "queued"
STARTING: Final = "starting"
RUNNING: Final = "running"
ENDED = ("done", "failed", "interrupted", "died")
Id = Annotated[str, Meta(pattern=r"\A[0-9a-f]{16}\Z")]


@dataclass(slots=True, kw_only=True)
class QueuedRun:
    """One command of the queue."""

    kind: Kind
    out: Text
    words: list[Text]
    folder: Text
    """Folder in which the command runs."""
    of: Text = ""
    """Folder of the run whose captions it is about; empty: `out`."""
    id: Id = field(default_factory=lambda: secrets.token_hex(8))
    values: dict[Text, Any] = field(default_factory=dict)
    """Values of the options that the page sent."""
    about: list[Text] = field(default_factory=list)
    """Keys of the captions that get a second question."""
    state: State = QUEUED
    pid: Count = 0
    start: Text = ""
    """When its process started, as `start_of` returns it."""
    began: Text = ""
    error: Text = ""

    @property
    def about_out(self) -> Path:
        return Path(self.of or self.out)


def trusts_code(words: Sequence[str]) -> bool:
    """Return whether a command lets code of others run."""
    return "--trust-remote-code" in takewhile("--".__ne__, words)


@dataclass(slots=True, kw_only=True)
class Queue:
    """The file of a queue."""

    runs: list[QueuedRun]

    def __post_init__(self) -> None:
        """Raises ValueError for a wrong time, and for a command that lets foreign code run: that
        needs a person's word each time, which no file can give."""
        for at, run in enumerate(self.runs):
            if trusts_code(run.words):
                raise ValueError(f"runs[{at}] trusts code of others")
            if run.began:
                seconds_of(run.began)


def read_runs(path: Path) -> list[QueuedRun]:
    """Return the runs of a queue; none without its file. Raises EnvironmentFault."""
    if not os.path.lexists(path):
        return []
    return read_json_file(Queue, path, "Move it away; what runs have made is kept").runs


async def plan_of(words: Sequence[str], folder: Path, seconds: float) -> dict[str, Any]:
    """Return the plan of a `caption` command, made by `penstock plan`. When the caller is
    cancelled, that command ends. Raises UsageError with what it says of a command that it
    refuses."""
    process = await asyncio.create_subprocess_exec(
        *program(["plan", "--json", *words[1:]]),
        cwd=folder,
        env={**os.environ, "NO_COLOR": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        out, errors = await asyncio.wait_for(process.communicate(), seconds)
        plan: dict[str, Any] = json.loads(out)
    except TimeoutError as error:
        raise UsageError(
            f"no plan within {seconds:.0f} s", hint="Try again: what was read is kept"
        ) from error
    except ValueError:
        lines = errors.decode(errors="replace").strip().splitlines()
        raise UsageError(lines[-1] if lines else "the plan failed") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):  # it ended just now
                os.killpg(process.pid, signal.SIGKILL)
    return plan


FOLDER = ".studio"
"""Folder of the locks, in the output folder."""
QUEUE = "runs.json"
NAMED = "PENSTOCK_STUDIO_RUN"
"""Variable with a run's id in the environment of its process."""
TICK_SECONDS = 0.5
MOST_RUNS = 1000
FULL_BYTES = 1 << 20
"""Free bytes below which a disk counts as full."""
SHOWN = ("state", "media", "captions", "failures", "error", "advice", "rungs", "started", "updated")
STAGE = (
    *("name", "running", "done", "failed", "pending", "about", "rate", "rate_last_minute"),
    *("seconds_left", "seconds"),
    "latest",
    *("taken_bytes", "planned_bytes", "now_bytes"),
)
"""What the page shows of a run and of its stages."""
SEARCH_MODEL = "openai/clip-vit-large-patch14"
"""Model that a finished run proposes for a search of its media."""
KEPT_BY_SEARCH = ("--recursive", f"--model={DEMO_MODEL}")
ENTRY = ("id", "kind", "out", "values", "state", "pid", "began", "error")


@functools.cache
def run_id(out: Path | str) -> str:
    return digest_of([os.path.realpath(out)])[:16]


def _status(run: QueuedRun) -> dict[str, Json] | None:
    """Return what the page shows of a run's progress; None if there is none yet."""
    try:
        progress = progress_of(Path(run.out))
    except PenstockError:
        return None
    if "pid" not in progress or not _is_of(run, progress["pid"], progress["started"]):
        return None
    return {
        **{name: progress[name] for name in SHOWN},
        "stages": [{name: stage.get(name) for name in STAGE} for stage in progress["stages"]],
        "budget": progress["plan"]["memory"]["budget_bytes"],
    }


def _record(run: QueuedRun) -> RunRecord | None:
    """Return the record that a run has written; None if there is none yet."""
    try:
        out = Path(run.out)
        record = load_record(run_of(product_in(out), out) or out)
    except PenstockError:
        return None
    return record if _is_of(run, record.pid, record.started) else None


def _is_of(run: QueuedRun, pid: int, started: str) -> bool:
    """Return whether a record that begins like this is of this run, and not of an earlier one."""
    if run.pid:
        return pid == run.pid
    return bool(run.began) and seconds_of(started) >= seconds_of(run.began)


class RunProcesses:
    """The processes of an output folder's runs, one at a time, and what each left in its log."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._child: subprocess.Popen[bytes] | None = None
        """The last one that was started here, until `take_code`."""

    @property
    def is_running(self) -> bool:
        return self._child is not None and self._child.poll() is None

    def start(self, run: QueuedRun, lock: int) -> int:
        """Start the command of a run, which keeps the lock until it ends. Return its process.
        Raises OSError."""
        with open(self.log(run), "wb") as log:
            self._child = subprocess.Popen(
                program(run.words),
                cwd=run.folder,
                env={**os.environ, "NO_COLOR": "1", NAMED: run.id},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=(lock,),
            )
        return self._child.pid

    def take_code(self) -> int | None:
        """Return the exit code of the process that ended, and forget it; None: an earlier server
        started it."""
        child, self._child = self._child, None
        return None if child is None else child.returncode

    def outcome(self, run: QueuedRun, code: int | None) -> tuple[State, str]:
        """Return the state and the error of a run that ended with this exit code."""
        record = _record(run)
        # A run stopped at its start records no end; an export may be rejected after its runs.
        if record is None or code == 4 or (code and run.kind == "export"):
            if code == 0:
                return "done", ""
            return ("interrupted" if code == 4 else "failed"), self._why(run, code)
        if record.state not in ENDED or record.state == "died":
            return "died", self._why(run, code)
        return record.state, record.error

    def _why(self, run: QueuedRun, code: int | None) -> str:
        """Return why a process ended that could not record it."""
        for folder in (Path(run.out), self._logs):
            if folder.is_dir() and shutil.disk_usage(folder).free < FULL_BYTES:
                return f"the disk of {folder} is full: free some space, then go on"
        if code is None or code < 0:
            return "its process was killed, by a user or for lack of memory"
        return last_line(self.log(run)) or f"it ended with code {code}, without a word"

    def log(self, run: QueuedRun) -> Path:
        return self._logs / f"{run.id}.log"


def lock_of(out: Path, name: str) -> int | None:
    """Return an open file that has a lock of the output folder, or None if another process has
    it. Raises EnvironmentFault."""
    with disk_faults(out):
        guard(out)
        (out / FOLDER).mkdir(parents=True, exist_ok=True)
        file = open_below(out / FOLDER / name, os.O_RDWR | os.O_CREAT)
    if try_lock(file):
        return file
    os.close(file)
    return None


class RunQueue:
    """The runs of one output folder: one at a time, the others wait."""

    def __init__(self, out: Path, on_begin: Callable[[QueuedRun], None] = lambda _: None) -> None:
        """Take the queue of `out`. `on_begin` is called before a run begins. Raises
        EnvironmentFault if another studio has it."""
        self._out, self._state = out, user_state() / "studio" / run_id(out)
        self._on_begin = on_begin
        self._lock = threading.RLock()
        self.processes = RunProcesses(self._state)
        self._end = threading.Event()
        self._own: int | None = None
        self.refusal = ""
        """Why nothing runs, of a folder that may only be read; empty: runs do."""
        try:
            self._own = lock_of(out, "server.lock")
        except EnvironmentFault as error:
            if not is_denied(error.__cause__):
                raise
            self.refusal = error.message
        if self._own is None and not self.refusal:
            raise EnvironmentFault(
                f"{out} is open in another studio", hint="Continue in that one, or end it first"
            )
        try:
            self.runs = read_runs(self._state / QUEUE)
        except BaseException:
            self._unlock()
            raise
        self._thread = threading.Thread(target=self._work, daemon=True)

    def start(self) -> None:
        if not self.refusal:
            self._thread.start()

    def close(self) -> None:
        """Stop working on the queue. A run that was started goes on."""
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()
        self._unlock()

    def _unlock(self) -> None:
        if self._own is not None:
            os.close(self._own)

    def _refuse(self) -> None:
        """Raise UsageError if the folder may only be read."""
        if self.refusal:
            raise UsageError(self.refusal, hint="Its owner may let you write there")

    def add(self, run: QueuedRun) -> QueuedRun:
        """Put a command at the end of the queue. Raises UsageError, EnvironmentFault."""
        self._refuse()
        with self._lock:
            if any(other.out == run.out and other.state not in ENDED for other in self.runs):
                raise UsageError(
                    f"a run into {run.out} is waiting or running already",
                    hint="Wait for it, stop it, or choose another folder",
                )
            if len(self.runs) >= MOST_RUNS:
                raise UsageError("the list of runs is full", hint="Remove some that ended")
            if trusts_code(run.words):
                raise UsageError(
                    "--trust-remote-code is never taken from a list of runs",
                    hint="Run the command yourself in a terminal",
                )
            self.runs.append(run)
            try:
                self._save()
            except EnvironmentFault:  # what was refused must not run later
                self.runs.remove(run)
                raise
        return run

    def change(self, name: str, do: str) -> None:
        """Stop, continue or remove a run. Raises UsageError, EnvironmentFault."""
        self._refuse()
        with self._lock:
            run = self.of(name)
            before = list(self.runs), run.state, run.error
            if do == "stop" and run.state == QUEUED:
                run.state = "interrupted"
            elif do == "stop" and run.state in (STARTING, RUNNING):
                # It stops in order, and what it finished is kept.
                interrupt(run.pid, run.start)
            elif do == "go on" and run.state in ENDED:
                run.state, run.error = QUEUED, ""
                self.runs = [*(other for other in self.runs if other is not run), run]
            elif do == "remove" and run.state in ENDED:
                self.runs.remove(run)
                self.processes.log(run).unlink(missing_ok=True)
            else:
                raise UsageError(
                    f"{do}: impossible for a run that is {run.state}", hint="Reload the page"
                )
            try:
                self._save()
            except EnvironmentFault:
                self.runs, run.state, run.error = before
                raise

    def is_learning(self, out: Path) -> bool:
        """Return whether a model learns from the corrections of a folder, whose journal it then
        writes."""
        active = (run for run in self.runs if run.state in (STARTING, RUNNING))
        return any(run.kind == "learn" and run.out == str(out) for run in active)

    def of(self, name: str) -> QueuedRun:
        for run in self.runs:
            if run.id == name:
                return run
        raise UsageError("there is no such run", hint="Reload the page")

    def to_json(self) -> list[dict[str, Any]]:
        with self._lock:
            runs = list(self.runs)
        return [self._shown(run) for run in runs]

    def _shown(self, run: QueuedRun) -> dict[str, Any]:
        return {
            **{name: getattr(run, name) for name in ENTRY},
            "name": run.about_out.name,
            "run": run_id(run.about_out),
            "said": last_line(self.processes.log(run)) if run.kind in SUMMED_UP else "",
            "line": line_of(run.words),
            "search": search_lines(run),
            "status": None if run.state == QUEUED else _status(run),
        }

    def _work(self) -> None:
        while not self._end.is_set():
            try:
                self.tick()
            except (PenstockError, OSError) as error:
                with self._lock:
                    starting = [run for run in self.runs if run.state == STARTING]
                    for run in starting:
                        run.state, run.error = "failed", str(error)
            self._end.wait(TICK_SECONDS)

    def tick(self) -> None:
        """Note a run that ended, and start the next one. Raises OSError, EnvironmentFault."""
        with self._lock:
            if self.processes.is_running:
                return
            lock = lock_of(self._out, "run.lock")
            if lock is None:  # a run of an earlier server, or one of its last threads
                self._find_again()
                return
            try:
                self._end_runs()
                following = next((run for run in self.runs if run.state == QUEUED), None)
                if following is not None:
                    self._begin(following, lock)
            finally:
                os.close(lock)

    def _find_again(self) -> None:
        """Note the process of a run that a killed server started, but could not note."""
        for run in self.runs:
            if run.state == STARTING and (pid := leader_with(NAMED, run.id)):
                run.state, run.pid, run.start = RUNNING, pid, start_of(pid)
                self._save()

    def _end_runs(self) -> None:
        """Note how runs ended, now that none has the lock."""
        code, changed = self.processes.take_code(), False
        for run in self.runs:
            if run.state == STARTING and not run.pid:
                run.state, changed = QUEUED, True  # the server was killed before it started it
            elif run.state in (STARTING, RUNNING):
                run.state, run.error = self.processes.outcome(run, code)
                changed = True
        if changed:
            self._save()

    def _begin(self, run: QueuedRun, lock: int) -> None:
        run.state, run.began, run.pid, run.start, run.error = STARTING, now(), 0, "", ""
        self._save()
        self._on_begin(run)
        run.pid, run.state = self.processes.start(run, lock), RUNNING
        run.start = start_of(run.pid)
        self._save()

    def _save(self) -> None:
        write_json(self._state / QUEUE, {"runs": [asdict(run) for run in self.runs]})


def search_lines(run: QueuedRun) -> list[str]:
    """Return the commands that index the media of a `caption` run, as its --sift left them, and
    search them by a text; none for one that the page did not start."""
    if run.kind != COMMAND or "--" not in run.words:
        return []
    at = run.words.index("--")
    options, sources = run.words[:at], run.words[at + 1 :]
    options_kept = [
        word for word in options if word in KEPT_BY_SEARCH or word.startswith("--store=")
    ]
    model = [] if f"--model={DEMO_MODEL}" in options_kept else [f"--model={SEARCH_MODEL}"]
    if any(word.startswith("--sift=") for word in options):
        sources = [os.path.join(run.out, PLACE, KEPT_FILE)]
    index = os.path.join(run.out, "index")
    build = ["index", "build", *options_kept, *model, f"--out={index}", "--", *sources]
    return [line_of(build), line_of(["search", "a dog in the snow", f"--index={index}"])]


def interrupt(pid: int, start: str) -> None:
    """Stop a process in order if it is the one that started then. Raises EnvironmentFault."""
    if not start:
        return
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    except OSError as error:
        raise EnvironmentFault(
            f"process {pid} cannot be stopped from here: {error.strerror}",
            hint=f"Run `kill {pid}` if it is the run",
        ) from error
    try:
        # The handle stays that of one process, whatever gets its number now.
        if start_of(pid) == start:
            # Not SIGINT: a studio that a script started ignores it, and so would its runs.
            signal.pidfd_send_signal(handle, signal.SIGTERM)
    finally:
        os.close(handle)


def leader_with(variable: str, value: str) -> int:
    """Return the process of this user that leads a session and was started with this variable in
    its environment; 0: none."""
    wanted = f"{variable}={value}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            pid = int(folder.name)
            if os.getsid(pid) == pid and wanted in (folder / "environ").read_bytes().split(b"\0"):
                return pid
        except (OSError, ValueError):
            continue
    return 0
