"""Runs one pipeline inside a flow, from its configuration to the flow's final state.

The sequence of stages is that of the plain command. Each stage starts as a task of the current flow
run, and its progress is reported there.
"""

import contextlib
import logging
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeAlias
from uuid import UUID

from prefect import State, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import StateType
from prefect.context import FlowRunContext
from prefect.futures import PrefectConcurrentFuture
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed

from artifacts.disk.json_shapes import Json
from artifacts.errors import Interrupted, NothingYet, PenstockError, UsageError
from artifacts.texts.captions import Failure
from flows.core.console.display import Display
from flows.core.console.lines import printable
from flows.core.job.prepare import Job, NothingToDo
from flows.core.machine.launch import DirectLauncher, StageCall
from flows.core.options.commands import MediaOptions
from flows.execution.run import LauncherMaker
from flows.execution.run_observer import OnBegin
from flows.interfaces.prefect.confinement import confine
from flows.interfaces.prefect.crashed import await_server, close_earlier_attempts, without_retries
from flows.interfaces.prefect.view import Progress, RunLog, page, show
from flows.outputs.record.record_writer import RecordWriter
from flows.outputs.record.run_record import FlowRun
from flows.outputs.run_result import RunResult
from stages.process.events import Answered, Event, StageOutcome, Total
from stages.process.stage_process import Listener, StageProcess


def as_the_state_says(record: logging.LogRecord) -> bool:
    """Filter Prefect's lines about the end of a run or a task. The state says why it failed, so the
    traceback goes. A cancelled stage is no error. A run that its worker cancels is not Running."""
    error = record.exc_info[1] if record.exc_info else None
    line = record.getMessage()
    if isinstance(error, PenstockError) or line == "Finished in state Running()":
        return False
    if error is None:
        record.exc_info = None  # or `NoneType: None` is logged for a task that returns Failed
    if line.startswith("Finished in state Cancelled("):
        record.levelno, record.levelname = logging.INFO, logging.getLevelName(logging.INFO)
    return True


for _name in ("prefect.flow_runs", "prefect.task_runs"):
    logging.getLogger(_name).addFilter(as_the_state_says)
PROGRESS_SECONDS = float(os.environ.get("PENSTOCK_PROGRESS_SECONDS") or 2.0)
"""Interval in seconds of progress reports to the server; with many workers, choose a longer one."""


class PrefectLauncher:
    """A launcher that starts each stage inside a task of the current flow run."""

    def __init__(self, listen: Listener) -> None:
        self._listen = listen
        self._bars: dict[str, StageBar] = {}
        close_earlier_attempts()

    def start(self, call: StageCall) -> "PrefectRunning":
        bar = self._bars.get(call.name)
        if bar is None or not bar.is_in_use:
            bar = self._bars[call.name] = StageBar(call.name, call.expected)
        return PrefectRunning(call, self._listen, bar)


class StageBar:
    """The progress bar of a stage, whose processes may share several GPUs. Thread-safe."""

    def __init__(self, stage: str, expected: int = 0) -> None:
        """`expected`: estimated number of items."""
        self._stage = stage
        self._lock = threading.Lock()
        self._bar: Progress | None = None
        self._users = self._done = 0
        self._total = expected

    @property
    def is_in_use(self) -> bool:
        return self._users > 0

    def take(self) -> None:
        """Count a process of the stage; `leave` ends that."""
        with self._lock:
            self._users += 1

    def leave(self, *, is_done: bool = False) -> None:
        """Close the bar if this was the last process. `is_done`: it ended well, so that what was
        made is all."""
        with self._lock:
            self._users -= 1
            bar = None if self._users else self._bar
        if bar is not None:
            if is_done:
                bar.report(self._done, self._done)
            bar.close()

    def count(self, event: Event) -> None:
        with self._lock:
            if isinstance(event, Answered):
                self._done += len(event.keys)
            elif isinstance(event, Total):
                self._total = max(self._total, event.items)

    def report(self) -> None:
        """Show the progress. Called in the context of a task."""
        with self._lock:
            self._bar = self._bar or Progress(self._stage)
            self._bar.report(self._done, self._total)


class PrefectRunning:
    """A stage in a task. One thread starts it, waits for it and reports on it, because the child
    process ends with that thread."""

    def __init__(self, call: StageCall, listen: Listener, bar: StageBar) -> None:
        self._call = call
        self._listen = listen
        self._bar = bar
        self._lock = threading.Lock()
        self._stopped = False
        self._process: StageProcess | None = None
        bar.take()
        title = call.title or call.name
        stage = task(
            name=call.name, task_run_name=title, cache_policy=NO_CACHE, persist_result=False
        )(self._run)
        self._future: PrefectConcurrentFuture[StageOutcome] = stage.submit()  # type: ignore[assignment]

    @property
    def outcome(self) -> StageOutcome:
        return self._process.outcome if self._process else StageOutcome(name=self._call.name)

    def wait(self) -> StageOutcome:
        return self._future.result()

    def wait_for_exit(self, seconds: float) -> bool:
        return bool(futures.wait([self._future.wrapped_future], seconds).done)

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
        if self._process is not None:
            self._process.stop()

    def _run(self) -> StageOutcome | State[PenstockError]:
        is_done = False
        try:
            process = self._start()
            try:
                while not process.wait_for_exit(PROGRESS_SECONDS):
                    self._bar.report()
                outcome = process.wait()
                is_done = True
                return outcome
            except PenstockError as error:
                # Raising would log a traceback. A process may be stopped because others did it all.
                ended = Cancelled if self._stopped else Failed
                return ended(message=str(error), data=error)
            finally:
                process.stop()
        finally:
            self._bar.report()
            self._bar.leave(is_done=is_done)

    def _start(self) -> StageProcess:
        call = self._call
        with self._lock:
            if self._stopped:
                raise Interrupted(f"the {call.name} stage was stopped before it started")
            self._process = DirectLauncher(self._count).start(call)
            return self._process

    def _count(self, stage: str, event: Event) -> None:
        self._bar.count(event)
        self._listen(stage, event)


Ended: TypeAlias = State[PenstockError | None]
"""How a flow ended, with its error."""
INTERRUPTED = "Interrupted"
"""Name of the state of a run that was ended from outside without being asked."""
LOOK_SECONDS = 30.0
"""Interval of looks at the run's state: that of heartbeats. A worker ends a run much sooner."""


def ended_by(error: PenstockError, key: str) -> Ended:
    """Return the state of a flow that an error ended, told as soon as the server answers.
    `Interrupted` is what flows/interfaces/prefect/sweep.py starts again."""
    await_server()
    if isinstance(error, NothingYet):
        return Completed(message=printable(str(error)))
    if isinstance(error, NothingToDo):
        show(page(str(error), {}, error.failures), key)
    message = printable(str(error))
    if isinstance(error.__cause__, KeyboardInterrupt):
        return Cancelled(message=message, data=error)
    name = INTERRUPTED if isinstance(error, Interrupted) else "Failed"
    return Failed(name=name, message=message, data=error)


class PipelineResult(Protocol):
    """The end of a run, whatever its outputs."""

    @property
    def failures(self) -> Sequence[Failure]: ...

    @property
    def made(self) -> int:
        """Return the number of rows that it wrote."""

    def line(self) -> str: ...

    def row(self) -> Mapping[str, Json]:
        """Return what was made, as a row of a table."""


GENERATED = re.compile(r"[a-z]+-[a-z]+")
"""A name that Prefect gives by itself."""
MAX_LETTERS = 80
"""Letters of a flow run's name."""
SHOWN = 2
"""Sources that it names."""
Runner = Callable[[Display, LauncherMaker, OnBegin], PipelineResult]
"""Function that runs a pipeline, such as those of `flows/execution/run.py` with a configuration."""


@dataclass(kw_only=True, slots=True)
class Caller:
    """The command line, when it runs the flow in its own process."""

    display: Display
    result: RunResult | None = None
    """Result that the flow sets: results do not travel through Prefect."""


CALLER: ContextVar[Caller | None] = ContextVar("caller", default=None)


def named_after_work() -> str:
    """Return the name of the flow run that is going on: what it does, with which media and into
    which folder, unless somebody has named it, as `--flow-run-name` does."""
    current = str(flow_run.name or "")
    parameters = flow_run.parameters or {}
    config = parameters.get("config") or parameters.get("caption") or {}
    field = config.get if isinstance(config, dict) else partial(getattr, config)
    out, sources, data, model = (field(n, None) for n in ("out", "sources", "data", "model"))
    media = [str(source) for source in sources or [data] if source]
    if not GENERATED.fullmatch(current) or not (media or out or model):
        return current
    parts = [str(flow_run.flow_name or "").partition("-")[0], ", ".join(media[:SHOWN])]
    parts += [f"and {len(media) - SHOWN} more"] if len(media) > SHOWN else []
    parts += [f"into {out}"] if out else [f"with {model}"] if model else []
    name = printable(" ".join(filter(None, parts)))
    return name if len(name) <= MAX_LETTERS else f"…{name[-MAX_LETTERS:]}"


@contextlib.contextmanager
def ended_when_cancelled() -> Iterator[None]:
    """Inside the block, interrupt the main thread as Ctrl-C does once the current flow run was
    cancelled. This ends a run that no worker ends: one of a command, or one whose worker is gone.
    Prefect calls it Cancelled all the same, while it works on. A run that is Cancelling at two
    looks has no worker that would end it."""
    run, main, left = flow_run.id, threading.main_thread().ident, threading.Event()

    def watch() -> None:
        looks = 0  # at which it was Cancelling
        while run and main and not left.wait(LOOK_SECONDS):
            with contextlib.suppress(Exception), without_retries():  # the server may be away
                with get_client(sync_client=True) as client:
                    state = client.read_flow_run(UUID(str(run))).state
                looks += bool(state and state.is_cancelling())
                if (looks > 1 or (state and state.is_cancelled())) and not left.is_set():
                    return signal.pthread_kill(main, signal.SIGINT)

    threading.Thread(target=copy_context().run, args=(watch,), daemon=True).start()
    try:
        yield
    finally:
        left.set()


DEMO = ("demo/samples",)
"""Sources of the deployments of prefect.yaml, as they come."""


def warn_of_demo(config: MediaOptions) -> None:
    """Say in the log of a scheduled run that it works on the demo's clips. A schedule has no
    parameters of its own, so nobody may have requested them."""
    context = FlowRunContext.get()
    run = context.flow_run if context else None
    if run is not None and run.auto_scheduled and tuple(config.sources) == DEMO:
        get_run_logger().warning(
            "This scheduled run works on the demo's clips: name your own `sources` in the "
            "`parameters` of its deployment in prefect.yaml, and start the worker again"
        )


SKIPPED = "Skipped"
"""Name of the state of a scheduled run that would overlap an earlier one."""


def earlier_run() -> str:
    """Return the name of the run that the current scheduled run would overlap: one of the same
    deployment and parameters that began before and goes on. Return an empty text for none."""
    context = FlowRunContext.get()
    run = context.flow_run if context else None
    if run is None or not run.auto_scheduled or run.deployment_id is None:
        return ""
    states = [StateType.RUNNING, StateType.CANCELLING]
    under_way = {
        "deployment_id": {"any_": [run.deployment_id]},
        "state": {"type": {"any_": states}},
    }
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(flow_run_filter=FlowRunFilter.model_validate(under_way))
    same = [
        (r.state.timestamp, r.id, r.name)
        for r in runs
        if r.state and r.parameters == run.parameters
    ]
    _, first, name = min(same, default=(None, run.id, ""))
    return "" if first == run.id else name


def note_run(_: Job, writer: RecordWriter) -> None:
    """Note the flow run that is going on in a run record."""
    writer.record.prefect = FlowRun(id=str(flow_run.id), name=str(flow_run.name))


def run_in_flow(config: MediaOptions, run: Runner, makes: str) -> Ended:
    """Run a pipeline in the flow run that is going on, and return the state that it ends in.
    `config` names the folders that it reads and writes. The page in the UI is called by what it
    makes."""
    caller = CALLER.get()
    display = caller.display if caller else Display(to=RunLog(get_run_logger()))
    key = f"penstock-{makes}"
    try:
        if caller is None:
            confine(config)
            warn_of_demo(config)
            if other := earlier_run():
                line = f"skipped: {other}, an earlier run of this deployment, goes on"
                return Completed(name=SKIPPED, message=printable(line))
        with ended_when_cancelled():
            result = run(display, PrefectLauncher, note_run)
    except PenstockError as error:
        return ended_by(error, key)
    if caller and isinstance(result, RunResult):
        caller.result = result
    await_server()
    folder = getattr(result, "out", None)  # a rebuild has none
    show(page(result.line(), result.row(), result.failures, folder), key)
    if result.made or not result.failures:
        return Completed(message=printable(result.line()))
    hint = f"Read {folder / 'failures.jsonl'}" if folder else "The page of the run says why"
    nothing = UsageError(result.line(), hint=hint)
    return Failed(message=printable(str(nothing)), data=nothing)
