"""Makes a Prefect flow of the caption run: one task a stage, progress and a table in the UI. It
decides nothing about the sequence, which is the plain command's."""

import os
import threading

# Before the first import of Prefect, of a command; in a deployment, Prefect was imported already.
# Each try waits twice as long as the one before, and how long the run waits is decided in
# flows/deployments/patience.py.
os.environ.setdefault("PREFECT_CLIENT_MAX_RETRIES", "2")

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from prefect import State, flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelled, Completed, Failed
from pydantic import ConfigDict, with_config

from artifacts.errors import EnvironmentFault, Interrupted, PenstockError, UsageError
from flows.console.display import Display, printable
from flows.deployments.confine import confine
from flows.deployments.login import FILE, refuses_login
from flows.deployments.page import RunPage
from flows.deployments.patience import await_server
from flows.deployments.server import client_settings
from flows.deployments.view import Progress, RunLog, plain, quiet_console, show, table
from flows.job.config import ABOVE_ZERO, FORMATS, PRECISIONS, CaptionConfig
from flows.job.launch import DirectLauncher, StageCall
from flows.job.prepare import NothingToDo
from flows.results.run_result import RunResult
from flows.running.run import caption
from flows.running.stopping import stopped_in_order
from flows.upkeep.rebuild_run import RebuildResult
from stages.process.events import Event, Item, Total
from stages.process.outcome import StageOutcome
from stages.process.stage_process import Listener, StageProcess

TABLE = "penstock-captions"
"""Key of the table in the UI."""
PROGRESS_SECONDS = 2.0
"""Seconds between two tellings of a stage's progress to the server."""

INTERRUPTED = "Interrupted"
"""Name of the state of a run that was ended from outside without being asked."""


@dataclass(kw_only=True, slots=True)
class Caller:
    """The command line, when it runs the flow inside itself."""

    display: Display
    result: RunResult | None = None
    """Result that the flow sets: results do not travel through Prefect."""


_caller: ContextVar[Caller | None] = ContextVar("caller", default=None)


def tighten(schema: dict[str, Any]) -> None:
    """Make Prefect refuse before a run what CaptionConfig would refuse in it."""
    fields = schema["properties"]
    fields["sources"]["minItems"] = 1
    fields["out"]["minLength"] = 1
    fields["format"]["items"]["enum"] = list(FORMATS)
    fields["precision"]["enum"] = list(PRECISIONS)
    for name in ("vision_precision", "language_precision"):
        fields[name]["anyOf"][0]["enum"] = list(PRECISIONS)
    fields["prompt"]["anyOf"][0]["pattern"] = r"\S"
    for name in ABOVE_ZERO:
        fields[name].get("anyOf", [fields[name]])[0]["exclusiveMinimum"] = 0


with_config(ConfigDict(extra="forbid", use_attribute_docstrings=True, json_schema_extra=tighten))(
    CaptionConfig
)


@flow(name="caption-videos", persist_result=False)
def caption_videos(config: CaptionConfig) -> State[Any]:
    """Caption everything that `config` names; its fields are the command line's options.

    Relative paths are looked up in the flow's working directory, which for a deployment is the
    folder it was deployed from.
    """
    caller = _caller.get()
    display = caller.display if caller else Display(to=RunLog(get_run_logger()))
    page = RunPage()
    try:
        if caller is None:
            confine(config)
        result = caption(config, display, PrefectLauncher, page.begin)
    except PenstockError as error:
        return ended_by(error, TABLE, page)
    except BaseException:
        page.end()  # or it would say for good that the run is going on
        raise
    if caller:
        caller.result = result
    row = {"files": result.files, "captions": result.captions, "folder": plain(str(result.out))}
    hint = f"Read {result.out / 'failures.jsonl'}"
    return ended(result, row, TABLE, page, nothing_hint="" if result.captions else hint)


def ended(
    result: RunResult | RebuildResult,
    row: dict[str, Any],
    key: str,
    page: RunPage,
    *,
    nothing_hint: str,
) -> State[Any]:
    """Return the state of a flow that no error ended, and show a table. The table is of what
    failed, or of the `row`. Where nothing was made because all failed, `nothing_hint` says what to
    read."""
    await_server()
    page.end()
    show(table(result.failures) or [row], result.line(), key)
    if result.failures and nothing_hint:
        nothing = UsageError(result.line(), hint=nothing_hint)
        return Failed(message=printable(str(nothing)), data=nothing)
    return Completed(message=printable(result.line()))


def ended_by(error: PenstockError, key: str, page: RunPage) -> State[Any]:
    """Return the state of a flow that an error ended, told as soon as the server answers.
    `Interrupted` is what flows/deployments/sweep.py starts again."""
    await_server()
    page.end()
    if isinstance(error, NothingToDo):
        show(table(error.failures), str(error), key)
    message = printable(str(error))
    if isinstance(error.__cause__, KeyboardInterrupt):
        return Cancelled(message=message, data=error)
    name = INTERRUPTED if isinstance(error, Interrupted) else "Failed"
    return Failed(name=name, message=message, data=error)


class PrefectLauncher:
    """A launcher that starts each stage inside a task of the flow run that is going on."""

    def __init__(self, listen: Listener) -> None:
        self._listen = listen

    def start(self, call: StageCall) -> "PrefectRunning":
        return PrefectRunning(call, self._listen)


class PrefectRunning:
    """A stage in a task: started, awaited and reported on one thread, which the child's life is
    tied to."""

    def __init__(self, call: StageCall, listen: Listener) -> None:
        self._call = call
        self._listen = listen
        self._done = 0
        self._total = 0
        self._lock = threading.Lock()
        self._stopped = False
        self._process: StageProcess | None = None
        stage = task(
            name=call.name, task_run_name=call.name, cache_policy=NO_CACHE, persist_result=False
        )(self._run)
        self._future: PrefectFuture[Any] = stage.submit()

    @property
    def outcome(self) -> StageOutcome:
        return self._process.outcome if self._process else StageOutcome(name=self._call.name)

    def wait(self) -> StageOutcome:
        outcome: StageOutcome = self._future.result()
        return outcome

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
        if self._process is not None:
            self._process.stop()

    def _run(self) -> StageOutcome | State[Any]:
        process = self._start()
        progress = Progress(self._call.name)
        try:
            while not process.ended(PROGRESS_SECONDS):
                progress.tell(self._done, self._total)
            outcome = process.wait()
            progress.tell(self._done, self._done)
            return outcome
        except PenstockError as error:
            return Failed(message=str(error), data=error)  # raised, it is logged with a traceback
        finally:
            process.stop()
            progress.close()

    def _start(self) -> StageProcess:
        call = self._call
        with self._lock:
            if self._stopped:
                raise Interrupted(f"the {call.name} stage was stopped before it started")
            self._process = DirectLauncher(self._count).start(call)
            return self._process

    def _count(self, stage: str, event: Event) -> None:
        if isinstance(event, Item):
            self._done += 1
        elif isinstance(event, Total):
            self._total = event.items
        self._listen(stage, event)


def run_with_prefect(config: CaptionConfig, display: Display) -> RunResult:
    """Run the flow inside the command, which prints what the plain command prints. Raises
    PenstockError."""
    quiet_console(display.say)
    caller = Caller(display=display)
    token = _caller.set(caller)
    try:
        with stopped_in_order(), temporary_settings(client_settings()):
            state = observed(config, caller)
    finally:
        _caller.reset(token)
    if caller.result is None:
        assert state is not None
        state.result()  # raises
    assert caller.result is not None
    return caller.result


def observed(config: CaptionConfig, caller: Caller) -> State[Any] | None:
    """Return the flow's state. A server that vanished after the work costs the state, not the
    work."""
    try:
        return caption_videos(config, return_state=True)
    except Exception as error:  # of Prefect: what the flow itself raises is in its state
        text = f"the Prefect server at {PREFECT_API_URL.value()} does not answer ({error})"
        hint = "Start it, or unset PREFECT_API_URL; nothing finished is lost"
        if refuses_login(error):
            text = f"the Prefect server at {PREFECT_API_URL.value()} refuses the login"
            hint = f"Set PREFECT_API_AUTH_STRING to what it asks for: {FILE} in its PREFECT_HOME"
        if caller.result is None:
            raise EnvironmentFault(text, hint=hint) from error
        caller.display.say(text)
        return None
