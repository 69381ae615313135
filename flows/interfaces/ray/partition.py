"""Processes one partition of a run on a node of a cluster, or writes the outputs of all.

Nothing here depends on Ray. A task gets a configuration and `Terms`, and returns a small dict: all
results lie in the store. It first checks that the store and the output folder are those of the
driver, and that the packages that affect outputs have the same versions.

A process of Ray makes one small run after another: what its stages import is shared, and one half
may stay loaded.
"""

import os
import socket
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any, TypedDict
from uuid import uuid4

from artifacts.disk.faults import fault_of
from artifacts.disk.files import write_text
from artifacts.errors import EnvironmentFault, Interrupted, PenstockError, UsageError
from artifacts.options import declared
from artifacts.records.store import open_store
from flows.commands.caption import run as sift_first
from flows.commands.label.run import label
from flows.core.console.display import Display
from flows.core.job.partitions import PORTIONS
from flows.core.job.prepare import Job, NothingToDo, out_folder
from flows.core.machine.launch import DirectLauncher, StageCall, StageHandle
from flows.core.machine.versions import versions
from flows.core.options.commands import RunOptions
from flows.core.pipelines import CAPTION, EMBED, LABEL, TAG, Pipeline
from flows.execution import run
from flows.execution.run_observer import OnBegin
from flows.outputs.record.record_writer import RecordWriter
from flows.outputs.record.run_record import Partitions
from flows.outputs.run_result import RunEnd
from stages.models.half_job import HalfJob
from stages.process.fork_client import ForkServer
from stages.process.stage_process import Listener


class SharedForks:
    """A launcher that forks all stages of this process from one server, which outlives runs.
    Another one is started if the process was given other GPUs."""

    _server = ForkServer()
    _visible: str | None = None
    """GPUs that the process had when the server was used last."""

    def __init__(self, listen: Listener) -> None:
        self._launcher = DirectLauncher(listen)

    def start(self, call: StageCall, forks: ForkServer | None = None) -> StageHandle:
        """Start a stage, by `forks` if they are given."""
        shared = None if call.fork_server is None else forks or self._forks()
        return self._launcher.start(replace(call, fork_server=shared))

    @classmethod
    def _forks(cls) -> ForkServer:
        before, cls._visible = cls._visible, os.environ.get("CUDA_VISIBLE_DEVICES")
        if before != cls._visible:
            cls._server.leave()
        return cls._server


class LoadedHalf:
    """Starts the stages of one run after another. Those of one name run in a process that keeps its
    half loaded, one per device, until another half is to be loaded there.

    A half is not kept that reads weights while it computes, nor one that llama.cpp runs, nor one
    that shares a GPU with another half.
    """

    def __init__(self, *stages: str) -> None:
        self._stages = stages
        self._loaded: dict[str, tuple[HalfJob, ForkServer]] = {}
        """Device → the half that was loaded there last, and its process."""
        weakref.finalize(self, _leave, self._loaded)
        self._launcher: SharedForks

    def __call__(self, listen: Listener) -> "LoadedHalf":
        """Return the launcher of the next run."""
        self._launcher = SharedForks(listen)
        return self

    def start(self, call: StageCall) -> StageHandle:
        half: HalfJob | None = getattr(call.job, "half", None)
        if half is None:
            return self._launcher.start(call)
        before, forks = self._loaded.get(call.device, (half, ForkServer(stays=True)))
        keeps = call.name in self._stages and not (half.offload or half.gguf or call.beside)
        if before != half or not keeps:
            forks.leave()
        self._loaded[call.device] = half, forks
        return self._launcher.start(call, forks if keeps else None)


def _leave(loaded: Mapping[str, tuple[HalfJob, ForkServer]]) -> None:
    for _, forks in loaded.values():
        forks.leave()


CROSSING = ("AWS_", "AZURE_", "GOOGLE_", "HF_")
"""Begins of the environment variables that tasks get from the driver: those of stores in a bucket
and of the hub."""
IGNORED = {"prefect"}
"""Packages whose versions may differ between nodes."""
SHARED = "shared"
"""Folder of a store in which the tokens of drivers lie meanwhile."""
TOKEN_SECONDS = 10.0
"""Longest time until a file that the driver wrote is seen on another node."""
OF_OUTPUTS = {
    "format": (),
    "limit": None,
    "min_age": None,
    "beside": False,
    "existing": None,
    "overwrite": False,
}
"""Options that only the last task takes → their value for a partition."""


COMMANDS: Mapping[str, tuple[Pipeline, Callable[..., RunEnd]]] = {
    "caption": (CAPTION, sift_first.caption),
    "embed": (EMBED, run.embed),
    "label": (LABEL, label),
}
"""Command → its stages, and the function that runs it."""


def stages_of(command: str, tagger: str) -> Pipeline:
    """Return the stages of a command: those of a `tagger` if there is one."""
    return TAG if tagger else COMMANDS[command][0]


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """What a task gets besides its configuration."""

    command: str
    """A key of COMMANDS."""
    out: Path
    """Output folder of the run."""
    folder: str
    """Working folder of the driver, to which paths are relative."""
    token: str
    """Text that the driver wrote into the store and the output folder."""
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Variables of CROSSING. Their values may be secrets, and appear in no log."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Package → its version in the driver."""
    partition: str = ""
    """Name of the partition; empty: the task writes the outputs of all."""
    partitions: Partitions | None = None
    """Fields for the run record of the last task."""
    on_begin: OnBegin | None = None
    """Called by the last task, as in `caption`."""

    @property
    def token_file(self) -> Path:
        return self.out / PORTIONS / f".{self.token}"


def terms_of(command: str, config: RunOptions, on_begin: OnBegin | None = None) -> Terms:
    """Return the terms of all tasks of a run, and write its token. Raises PenstockError."""
    terms = Terms(
        command=command,
        out=out_folder(config),
        folder=os.getcwd(),
        token=uuid4().hex,
        environment={n: value for n, value in os.environ.items() if n.startswith(CROSSING)},
        versions=compared_versions(),
        on_begin=on_begin,
    )
    store = open_store(config.store_url)
    store.put_if_absent(f"{SHARED}/{terms.token}", [terms.token.encode()])
    write_text(terms.token_file, [terms.token])
    return terms


def withdraw(config: RunOptions, terms: Terms) -> None:
    """Remove the token of a run. Raises EnvironmentFault."""
    terms.token_file.unlink(missing_ok=True)
    open_store(config.store_url).delete(f"{SHARED}/{terms.token}")


def compared_versions() -> dict[str, str]:
    return {name: version for name, version in versions().items() if name not in IGNORED}


def check_node(config: RunOptions, terms: Terms) -> None:
    """Check that this node has the driver's packages, output folder and store. Raises UsageError,
    EnvironmentFault, OSError."""
    node, versions = socket.gethostname(), compared_versions()
    for name in sorted({*versions, *terms.versions}):
        if (own := versions.get(name, "none")) != (other := terms.versions.get(name, "none")):
            raise UsageError(
                f"{name} is {own} on {node}, and {other} where the run was started",
                hint="Install the same versions on every node",
            )
    store = open_store(config.store_url)
    for what, read in (
        (f"the output folder {terms.out}", terms.token_file.read_bytes),
        (f"the store {store.url}", lambda: store.get(f"{SHARED}/{terms.token}")),
    ):
        if not _is_read(read, terms.token):
            raise UsageError(
                f"{what} on {node} is not the one of the run: it is not shared",
                hint="Give a folder that every node has under the same path, or a bucket",
            )


def _is_read(read: Callable[[], bytes], token: str) -> bool:
    deadline = time.monotonic() + TOKEN_SECONDS
    while True:
        try:
            return read() == token.encode()
        except FileNotFoundError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.5)


class TaskEnd(TypedDict, total=False):
    """How a task ended."""

    result: RunEnd
    """What the command made."""
    stages: dict[str, int]
    """Stage → items that it made."""
    error: PenstockError | None
    """What went wrong besides files."""
    retry: bool
    """Whether it may succeed elsewhere or later."""
    seconds: float
    node_id: str
    """Node of the cluster."""


def process(config: RunOptions, terms: Terms) -> TaskEnd:
    """Run one task."""
    began = time.monotonic()
    ended: TaskEnd = {"error": None}
    try:
        os.environ.update(terms.environment)
        if os.path.isdir(terms.folder):
            os.chdir(terms.folder)
        check_node(config, terms)
        ended |= _run(_partition_of(config, terms) if terms.partition else config, terms)
    except (PenstockError, OSError) as raised:
        if isinstance(raised, OSError):
            error: PenstockError = fault_of(raised, Path(str(raised.filename or terms.out)))
        else:
            error = raised
        ended |= {"error": error, "retry": isinstance(error, EnvironmentFault | Interrupted)}
    return {**ended, "seconds": time.monotonic() - began}


def _run(config: RunOptions, terms: Terms) -> TaskEnd:
    """Run the command. Its result crosses without what grows with the number of files."""
    writer: RecordWriter | None = None

    def on_begin(job: Job, begun: RecordWriter) -> None:
        nonlocal writer
        writer = begun
        writer.record.partitions = terms.partitions
        if terms.on_begin is not None and not terms.partition:
            terms.on_begin(job, writer)

    try:
        result = COMMANDS[terms.command][1](config, Display(quiet=True), SharedForks, on_begin)
    except NothingToDo:
        if not terms.partition:
            raise
        return {}  # the last task names the files
    items = {stage.name: stage.items for stage in (writer.record.stages if writer else ())}
    return {"result": replace(result, failures=[], chunks=None), "stages": items}


def _partition_of(config: RunOptions, terms: Terms) -> RunOptions:
    """Return the configuration of a partition, whose folder no other try has, not even one that is
    thought dead. Raises OSError."""
    place = terms.out / PORTIONS / terms.partition
    names = {declaration.name for declaration in declared(type(config))}
    fixed: dict[str, Any] = {name: OF_OUTPUTS[name] for name in OF_OUTPUTS if name in names}
    for number in count(1):
        with suppress(FileExistsError):
            (folder := place.with_name(f"{place.name}-{number}")).mkdir()
            return replace(config, sources=(f"@{place}.jsonl",), out=str(folder), **fixed)
    raise AssertionError
