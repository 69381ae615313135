"""Starts stages as plain child processes. Callers depend only on `Launcher`, so that Prefect can
replace it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from artifacts.errors import EnvironmentFault, Killed
from flows.pipelines import STAGES
from stages.process.device import device_name
from stages.process.fork_client import ForkServer
from stages.process.outcome import StageOutcome
from stages.process.stage_process import Listener, StageProcess

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

ENTRIES: Mapping[str, str] = {
    **{name: stage.entry for name, stage in STAGES.items()},
    "describe": "stages.models.describe_run:run",
    "convert": "stages.convert.run:run",
    "merge": "stages.export.merge:run",
    "time_graphs": "stages.export.graphs.timing:run",
    "cut": "stages.frames.clip_copy:run",
    "cut_live": "stages.frames.live:run",
    "measure": "stages.memory.measure:run",
    "probe": "stages.process.gpu_probe:run",
}
"""Stage name → function that its process calls."""
IMPORTING = {"describe", "time_graphs", *(name for name, stage in STAGES.items() if stage.part)}
"""Stages that import model libraries."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageCall:
    """A stage to run in a process: its job, device and limits."""

    name: str
    """A key of ENTRIES."""
    job: "DataclassInstance"
    """The stage's job. It becomes JSON when the process is started."""
    device: str
    """`cpu` or `cuda:N`: the device that the process computes on. The process locks a GPU."""
    log: Path
    """File for the stage's own output."""
    budget: int = 0
    """Bytes of the device that it may use above its imports; 0: no limit."""
    seconds: float = 0.0
    """CPU time limit of one of its threads, in seconds; 0: no limit."""
    fork_server: ForkServer | None = None
    """Server that it may be forked from."""
    persistent: bool = False
    """Whether it keeps running and reads requests from a pipe. Its parent then holds the device's
    lock."""


MAX_RESTARTS = 2
"""How many times in a row a stage is started again if it is killed before it makes anything."""


class StageHandle(Protocol):
    """A handle of a started stage."""

    @property
    def outcome(self) -> StageOutcome: ...

    def wait(self) -> StageOutcome: ...

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
        return StageProcess(
            call.name,
            self._entries[call.name],
            call.job,
            device=call.device,
            log=call.log,
            listen=self._on_event,
            budget=call.budget,
            seconds=call.seconds,
            forks=call.fork_server,
            stays=call.persistent,
        )


class ForkingLauncher:
    """A launcher that forks stages with model imports from one process that has done these imports.
    It does not fork on machines with a GPU, where forking has not been shown to be safe."""

    def __init__(self, launcher: Launcher, fork_server: ForkServer) -> None:
        self._launcher = launcher
        self._fork_server = fork_server

    def start(self, call: StageCall) -> StageHandle:
        if call.name in IMPORTING and call.device == "cpu" and not _has_gpu():
            call = replace(call, fork_server=self._fork_server)
        return self._launcher.start(call)


def _has_gpu() -> bool:
    try:
        return device_name() != "cpu"
    except EnvironmentFault:
        return True


def run_with_restarts(launcher: Launcher, call: StageCall) -> StageOutcome:
    """Run a stage whose result is its notes. A killed stage is started again. Raises
    PenstockError."""
    kills = 0
    while True:
        process = launcher.start(call)
        try:
            return process.wait()
        except Killed:
            kills += 1
            if kills > MAX_RESTARTS:
                raise
        except BaseException:
            process.stop()
            raise
