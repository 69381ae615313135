"""Processes one partition of a run in a worker of a cluster, or writes the outputs of all.

Nothing here depends on Ray. A task gets a configuration and `Terms`, and returns a small dict: all
results lie in the store. It first checks that the store and the output folder are those of the
driver, and that the packages that affect the output have the same versions.
"""

import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any
from uuid import uuid4

from artifacts.errors import EnvironmentFault, Interrupted, PenstockError, UsageError
from artifacts.files import write_text
from artifacts.options import declared
from artifacts.store import fault_of, open_store
from flows.console.display import Display
from flows.job.partitions import PORTIONS
from flows.job.prepare import NothingToDo, out_folder
from flows.machine.launch import DirectLauncher, Launcher, StageCall, StageHandle
from flows.machine.versions import versions
from flows.options.commands import RunOptions
from flows.options.vectors import LabelOptions
from flows.results.label_files import LabelsWritten
from flows.results.run_record import RunRecord
from flows.running import run, sift_first
from flows.running.label import label, label_request
from flows.running.run import LauncherMaker
from flows.running.run_observer import OnBegin
from stages.process.fork_client import ForkServer
from stages.process.stage_process import Listener

CROSSING = ("AWS_", "AZURE_", "GOOGLE_", "HF_")
"""Begins of the environment variables that tasks get from the driver: those of stores in a bucket
and of the hub."""
IGNORED = {"prefect"}
"""Packages whose versions may differ between nodes."""
SHARED = "shared"
"""Folder of a store in which the tokens of drivers lie meanwhile."""
TOKEN_SECONDS = 10.0
"""Longest time until a file that the driver wrote is seen on another node."""
PARTITION: Mapping[str, Any] = {
    "format": (),
    "limit": None,
    "beside": False,
    "existing": None,
    "overwrite": False,
    "media": None,
}
"""Options that a partition does not take: the last task writes these outputs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """What a task gets besides its configuration."""

    command: str
    """A key of COMMANDS."""
    folder: str
    """Working folder of the driver, to which paths are relative."""
    token: str
    """Text that the driver wrote into the store and the output folder."""
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Variables of CROSSING. Their values may be secrets, and appear in no log."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Package → its version in the driver."""
    out: str = ""
    """Output folder of the run."""
    partition: str = ""
    """Name of the partition; empty: the task writes the outputs of all."""
    record: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the run record of the last task."""


def terms_of(command: str, config: RunOptions) -> Terms:
    """Return the terms of all tasks of a run, and write its token. Raises PenstockError."""
    token = uuid4().hex
    open_store(config.store_url).put_if_absent(f"{SHARED}/{token}", [token.encode()])
    write_text(_token_file(out_folder(config), token), [token])
    given = {name: value for name, value in os.environ.items() if name.startswith(CROSSING)}
    return Terms(
        command=command,
        folder=os.getcwd(),
        token=token,
        environment=given,
        versions=compared_versions(),
        out=str(out_folder(config)),
    )


def withdraw(config: RunOptions, terms: Terms) -> None:
    """Remove the token of a run. Raises EnvironmentFault."""
    _token_file(Path(terms.out), terms.token).unlink(missing_ok=True)
    open_store(config.store_url).delete(f"{SHARED}/{terms.token}")


def _token_file(out: Path, token: str) -> Path:
    return out / PORTIONS / f".{token}"


def compared_versions() -> dict[str, str]:
    return {name: found for name, found in versions().items() if name not in IGNORED}


def check_node(config: RunOptions, terms: Terms) -> None:
    """Check that this node has the driver's packages, output folder and store. Raises UsageError,
    EnvironmentFault."""
    node, here = socket.gethostname(), compared_versions()
    for name in sorted({*here, *terms.versions}):
        if (own := here.get(name, "none")) != (other := terms.versions.get(name, "none")):
            raise UsageError(
                f"{name} is {own} on {node}, and {other} where the run was started",
                hint="Install the same versions on every node",
            )
    store = open_store(config.store_url)

    def in_store() -> str:
        return store.get(f"{SHARED}/{terms.token}").decode()

    places: dict[str, Callable[[], str]] = {
        f"the output folder {terms.out}": _token_file(Path(terms.out), terms.token).read_text,
        f"the store {store.url}": in_store,
    }
    for what, read in places.items():
        if not _is_read(read, terms.token):
            raise UsageError(
                f"{what} on {node} is not the one of the run: it is not shared",
                hint="Give a folder that every node has under the same path, or a bucket",
            )


def _is_read(read: Callable[[], str], token: str) -> bool:
    deadline = time.monotonic() + TOKEN_SECONDS
    while True:
        try:
            if read() == token:
                return True
        except FileNotFoundError:
            pass
        except OSError as error:
            raise fault_of(error, Path(str(error.filename or ""))) from error
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)


def process(config: RunOptions, terms: Terms) -> dict[str, Any]:
    """Run one task. Return how it ended: `error` is what went wrong besides files, and the last
    task adds what its command prints. `retry` says whether it may succeed elsewhere or later."""
    began, ended = time.monotonic(), dict[str, Any](node=socket.gethostname(), error=None)
    try:
        os.environ.update(terms.environment)
        if os.path.isdir(terms.folder):
            os.chdir(terms.folder)
        check_node(config, terms)
        ended |= _last(config, terms) if not terms.partition else _partition(config, terms)
    except PenstockError as error:
        ended |= {"error": error, "retry": isinstance(error, EnvironmentFault | Interrupted)}
    return {**ended, "seconds": time.monotonic() - began}


def _partition(config: RunOptions, terms: Terms) -> dict[str, Any]:
    folder = _new_folder(Path(terms.out) / PORTIONS, terms.partition)
    names = {each.name for each in declared(type(config))}
    fixed = {name: value for name, value in PARTITION.items() if name in names}
    source = f"@{Path(terms.out) / PORTIONS / terms.partition}.jsonl"
    records: list[RunRecord] = []
    own = replace(config, sources=(source,), out=str(folder), **fixed)
    try:
        result = _run(own, terms, lambda _, record: records.append(record))
    except NothingToDo as error:
        return {"failed": len(error.failures)}
    stages = {each["name"]: each["items"] for each in records[-1].value["stages"]}
    return {"failed": len(result.failures), "stages": stages}


def _last(config: RunOptions, terms: Terms) -> dict[str, Any]:
    """Write the outputs: run the command over everything, whose results are stored."""
    result = _run(config, terms, lambda _, record: record.value.update(terms.record))
    notes = result.notes() if isinstance(result, LabelsWritten) else ()
    return {
        "exit_code": result.exit_code,
        "made": result.made,
        "text": result.line(),
        "values": result.to_json(),
        "cells": result.row(),
        "warnings": list(getattr(result, "warnings", ())),
        "lines": list(notes),
    }


def _run(config: RunOptions, terms: Terms, on_begin: OnBegin) -> Any:
    return COMMANDS[terms.command](config, Display(quiet=True), SharedForks, on_begin)


def _new_folder(folder: Path, name: str) -> Path:
    """Create the folder of a try, which no other try has, not even one that is thought dead."""
    for number in count(1):
        try:
            (folder / f"{name}-{number}").mkdir()
        except FileExistsError:
            continue
        except OSError as error:
            raise fault_of(error, folder) from error
        return folder / f"{name}-{number}"
    raise AssertionError


def _label(
    config: RunOptions, display: Display, make_launcher: LauncherMaker, on_begin: OnBegin
) -> LabelsWritten:
    return label(config, label_request(LabelOptions.of(config)), display, make_launcher, on_begin)


COMMANDS: Mapping[str, Callable[[Any, Display, LauncherMaker, OnBegin], Any]] = {
    "caption": sift_first.caption,
    "embed": run.embed,
    "label": _label,
}
"""Command → function that runs it."""


class SharedForks:
    """A launcher that forks all stages of this process from one server, which outlives runs.
    Another one is started if the process was given other GPUs."""

    _server: tuple[str | None, ForkServer] | None = None

    def __init__(self, listen: Listener) -> None:
        self._launcher: Launcher = DirectLauncher(listen)

    def start(self, call: StageCall) -> StageHandle:
        if call.fork_server is not None:
            call = replace(call, fork_server=self._forks())
        return self._launcher.start(call)

    @classmethod
    def _forks(cls) -> ForkServer:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if cls._server is None or cls._server[0] != visible:
            if cls._server is not None:
                cls._server[1].__exit__()
            cls._server = visible, ForkServer()
        return cls._server[1]
