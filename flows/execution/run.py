"""Runs one job from its configuration to its exit code, with any launcher.

A signal stops the run, and all finished work is kept.
"""

import contextlib
import errno
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

from artifacts.disk.faults import fault_of
from artifacts.errors import Interrupted
from artifacts.packages import require
from artifacts.records.packs import DamagedRecord
from artifacts.texts.captions import write_jsonl
from flows.core.console.display import READING, Display
from flows.core.console.interrupts import repeating_dropped_interrupts
from flows.core.job.prepare import Job, NothingToDo, out_folder, prepare, prepare_without_media
from flows.core.job.replan import replanned_once
from flows.core.machine.launch import DirectLauncher, ForkingLauncher, Launcher, with_restarts
from flows.core.options.commands import RunOptions
from flows.core.pipelines import EMBED, Pipeline
from flows.execution.run_observer import OnBegin, RunObserver
from flows.outputs.folder.owners import refuse_taking
from flows.outputs.run_result import RunResult
from flows.outputs.vectors import VectorsWritten, vector_paths, write_vectors
from stages.process.fork_client import ForkServer
from stages.process.stage_process import Listener

STOPPING = (signal.SIGTERM, signal.SIGHUP)
"""Signals handled like Ctrl-C: a request to end, and the end of the terminal or connection."""


@contextlib.contextmanager
def stopped_in_order() -> Iterator[None]:
    """End the run in the same way on Ctrl-C, SIGTERM and SIGHUP: the stage is stopped and the
    outputs are written. A signal that is already handled or ignored keeps its handler, as with
    Prefect or `nohup`. Raises Interrupted."""
    before = {number: signal.getsignal(number) for number in STOPPING}
    if threading.current_thread() is not threading.main_thread():
        before = {}
    handled = [number for number, handler in before.items() if handler is signal.SIG_DFL]
    hung_up = False

    def stop(number: int, _: object) -> None:
        nonlocal hung_up
        if number == signal.SIGHUP:
            hung_up = True
            # SIGHUP comes twice, from the kernel and from the shell. The outputs must still be
            # written.
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in handled:
        signal.signal(number, stop)
    try:
        with repeating_dropped_interrupts(stop):
            yield
    except KeyboardInterrupt as error:
        raise Interrupted(
            "stopped", hint="Finished work is kept; run the same command again to continue"
        ) from error
    finally:
        for number in handled:
            if number != signal.SIGHUP or not hung_up:
                signal.signal(number, signal.SIG_DFL)


LauncherMaker = Callable[[Listener], Launcher]
Filled = TypeVar("Filled", bound=VectorsWritten)


def caption(
    config: RunOptions,
    display: Display,
    make_launcher: LauncherMaker = DirectLauncher,
    on_begin: OnBegin | None = None,
    left_out: frozenset[str] = frozenset(),
) -> RunResult:
    """Caption all media of the configuration, except those in the places of `left_out`. `on_begin`
    is called with the job and its record before work begins, and again if the model changes
    meanwhile. Raises PenstockError; finished records stay."""

    def attempt() -> RunResult:
        refuse_taking(config, "caption")
        observer = RunObserver(display, on_begin, "caption")
        with (
            prepared(config, observer, make_launcher, left_out=left_out) as (job, launcher),
            observer.pipeline_for_job(job, launcher) as runner,
        ):
            return runner.run()

    return replanned_once(attempt, display.print_line)


def embed(
    config: RunOptions,
    display: Display,
    make_launcher: LauncherMaker = DirectLauncher,
    on_begin: OnBegin | None = None,
) -> VectorsWritten:
    """Compute vectors of all media of the configuration. `on_begin` is as in `caption`. Raises
    PenstockError; finished records stay."""
    require("embed", "pyarrow")
    refuse_taking(config, "embed")
    outputs = VectorOutputs(vector_paths, write_vectors, command="embed")
    return make_vectors(config, display, outputs, make_launcher, on_begin)


@dataclass(frozen=True, slots=True)
class VectorOutputs(Generic[Filled]):
    """What a command makes of the vectors of all media."""

    places_of: Callable[[Job], dict[str, str]]
    """Returns the output paths, before work begins."""
    write: Callable[[Job], Filled]
    """Writes the outputs from the vectors in the store."""
    command: str = ""
    """As in `RunObserver`."""
    another: str = "give another --out"
    """Advice where the folder is busy."""


def make_vectors(
    config: RunOptions,
    display: Display,
    outputs: VectorOutputs[Filled],
    make_launcher: LauncherMaker = DirectLauncher,
    on_begin: OnBegin | None = None,
) -> Filled:
    """Compute the same vectors, and write the outputs. Raises PenstockError."""

    def attempt() -> Filled:
        observer = RunObserver(display, on_begin, outputs.command)
        with prepared(config, observer, make_launcher, EMBED) as (job, launcher):
            places = outputs.places_of(job)
            with observer.pipeline_for_job(job, launcher, "", outputs.another, places) as runner:
                return runner.compute_outputs(partial(outputs.write, job), lambda end: end.vectors)

    return with_restarts(
        partial(replanned_once, attempt, display.print_line),
        after=(DamagedRecord,),  # found while the outputs are written
        prepare=lambda error: display.print_line(f"{error.message}; it is computed again"),
    )


@contextlib.contextmanager
def prepared(
    config: RunOptions,
    observer: RunObserver,
    make_launcher: LauncherMaker,
    *pipelines: Pipeline,
    left_out: frozenset[str] = frozenset(),
) -> Iterator[tuple[Job, Launcher]]:
    """Yield the job of a command, and the launcher of its stages. The job takes the first of
    `pipelines` that suits its model (default: captions), and no file of `left_out`. Raises
    PenstockError."""
    refuse_file(out_folder(config))
    display = observer.display
    display.doing(READING)
    with stopped_in_order(), contextlib.closing(display), ForkServer() as forks:
        launcher = ForkingLauncher(make_launcher(observer.on_event), forks, observer.on_event)
        try:
            if config.sources:
                job = prepare(
                    config,
                    launcher,
                    display.print_line,
                    *pipelines,
                    progress=display.fetched,
                    left_out=left_out,
                )
            else:
                job = prepare_without_media(config, launcher, *pipelines)
        except NothingToDo as error:
            write_jsonl(out_folder(config) / "failures.jsonl", error.failures)
            raise
        yield job, launcher


def refuse_file(folder: Path) -> None:
    """Check that no file is in the way of an output folder. This runs before a model is read or
    downloaded. Raises EnvironmentFault."""
    existing = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
    if not existing.is_dir():
        raise fault_of(NotADirectoryError(errno.ENOTDIR, ""), folder)
