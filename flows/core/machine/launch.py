"""Starts stages as child processes.

Callers depend only on `Launcher`, so that Prefect can replace the plain child processes.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from artifacts.errors import Killed, StageDied
from artifacts.records.packs import DamagedRecord
from flows.core.pipelines import STAGES
from stages.process.events import StageOutcome, Warned
from stages.process.fork_client import ForkServer
from stages.process.stage_process import Listener, ProcessSettings, StageProcess

ENTRIES: Mapping[str, str] = {
    **{name: stage.entry for name, stage in STAGES.items()},
    "describe": "stages.models.inspection:run",
    "describe_gguf": "stages.models.inspection:run_gguf",
    "convert": "stages.convert.run:run",
    "merge": "stages.export.merge:run",
    "export_features": "stages.tune.feature_export:run",
    "tokenizer": "stages.models.processors.tokenizer_file:run",
    "time_graphs": "stages.export.graphs.timing:run",
    "cut": "stages.frames.cut:run",
    "cut_live": "stages.frames.live:run",
    "sound_live": "stages.sound.run:run_live",
    "probe": "stages.process.device_limit:run",
}
"""Stage name → function that its process calls."""
IMPORTING = {name for name, stage in STAGES.items() if stage.part}
IMPORTING |= {"describe", "describe_gguf", "export_features", "time_graphs", "tokenizer"}
"""Stages that import model libraries."""
FORK_SIGNS = ("forked subprocess", "initialization error")
"""Texts in the errors of torch and of CUDA if a process cannot use CUDA because it was forked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageCall(ProcessSettings):
    """A stage to run in a process, whose name is a key of ENTRIES."""

    fork_server: ForkServer | None = None
    """Server that it may be forked from."""
    copies: "tuple[StageCall, ...]" = ()
    """The same work for processes on other GPUs, which share it."""
    share_file: str = ""
    """File of their `Share`."""
    title: str = ""
    """Name of the process in displays; empty: that of the stage."""
    expected: int = 0
    """Estimated number of items, of a stage that finds out while it works; 0: it knows."""


MAX_RESTARTS = 2
"""How many times in a row a stage is started again if it is killed before it makes anything."""
REMAKES = 3
"""Number of times that the same damaged record is found before the run fails."""


Result = TypeVar("Result")


def with_restarts(
    attempt: Callable[[], Result],
    *,
    after: tuple[type[DamagedRecord | Killed], ...] = (Killed,),
    prepare: Callable[[DamagedRecord | Killed], object] = lambda error: None,
) -> Result:
    """Return what `attempt` returns. It is called again after each of these errors, within the
    limits above, and `prepare` is called with the error before that. Raises PenstockError."""
    kills, remakes = 0, Counter[str]()
    while True:
        try:
            return attempt()
        except after as error:
            if isinstance(error, Killed):
                # The sender of the signal is unknown. If the kernel is short of memory, it kills
                # the stage again before it makes anything. A user who wants to end the run stops
                # this process.
                kills = 0 if error.items else kills + 1
            else:
                # A record that is damaged repeatedly points to the disk.
                remakes[error.message] += 1
            if kills > MAX_RESTARTS or remakes[error.message] == REMAKES:
                raise
            prepare(error)


class StageHandle(Protocol):
    """A handle of a started stage."""

    @property
    def outcome(self) -> StageOutcome: ...

    def wait(self) -> StageOutcome: ...

    def wait_for_exit(self, seconds: float) -> bool:
        """Wait at most so many seconds. Return whether the process has ended."""

    def stop(self) -> None: ...


class Launcher(Protocol):
    """Starts stages. There is one instance per run."""

    def start(self, call: StageCall) -> StageHandle: ...


class DirectLauncher:
    """Starts each stage as a child of this process."""

    def __init__(self, on_event: Listener, entries: Mapping[str, str] = ENTRIES) -> None:
        self._on_event = on_event
        self._entries = entries

    def start(self, call: StageCall) -> StageProcess:
        return StageProcess(call, self._entries[call.name], self._on_event, call.fork_server)


class ForkingLauncher:
    """A launcher that forks stages with model imports from one process that has done these imports,
    until a forked stage cannot use the GPU."""

    def __init__(self, launcher: Launcher, fork_server: ForkServer, on_event: Listener) -> None:
        self._launcher = launcher
        self._fork_server = fork_server
        self._on_event = on_event
        self._forks = True

    def start(self, call: StageCall) -> StageHandle:
        if call.name not in IMPORTING or not self._forks:
            return self._launcher.start(call)
        forked = self._launcher.start(replace(call, fork_server=self._fork_server))
        return forked if call.device == "cpu" else ForkedOnGpu(forked, call, self._start_fresh)

    def _start_fresh(self, call: StageCall) -> StageHandle | None:
        """Fork no more stages. Start the stage again, or return None if its requests are gone with
        the process."""
        self._forks = False
        text = f"a forked {call.name} stage could not use the GPU; stages are no longer forked"
        self._on_event(call.name, Warned(text=text))
        fresh = None if call.beside else self._launcher.start(call)
        if fresh is not None:
            fresh.outcome.warnings.append(text)
        return fresh


@dataclass(slots=True)
class ForkedOnGpu:
    """A stage that was forked, and is started again as a fresh process if CUDA refuses to work in
    a fork. It has then made nothing yet."""

    running: StageHandle
    call: StageCall
    start_fresh: Callable[[StageCall], StageHandle | None]

    @property
    def pid(self) -> int:
        return int(getattr(self.running, "pid", 0))

    @property
    def outcome(self) -> StageOutcome:
        return self.running.outcome

    def wait(self) -> StageOutcome:
        try:
            return self.running.wait()
        except StageDied as error:
            is_fork_fault = any(sign in error.message for sign in FORK_SIGNS)
            fresh = self.start_fresh(self.call) if is_fork_fault else None
            if fresh is None:
                raise
            self.running = fresh
        return self.running.wait()

    def wait_for_exit(self, seconds: float) -> bool:
        return self.running.wait_for_exit(seconds)

    def stop(self) -> None:
        self.running.stop()


def wait_or_stop(
    process: StageHandle,
    meanwhile: Callable[[], object] = lambda: None,
    beside: contextlib.AbstractContextManager[object] | None = None,
) -> StageOutcome:
    """Call a function, and wait for a stage within the context `beside`. The stage does not keep
    running if any of that ends with an error. Raises PenstockError."""
    try:
        with beside or contextlib.nullcontext():
            meanwhile()
            return process.wait()
    except BaseException:
        process.stop()
        raise


def run_with_restarts(launcher: Launcher, call: StageCall) -> StageOutcome:
    """Run a stage whose result is its notes. A killed stage is started again. Raises
    PenstockError."""
    return with_restarts(lambda: wait_or_stop(launcher.start(call)))
