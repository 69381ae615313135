"""Runs one job from its configuration to its exit code, with any launcher."""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from artifacts.captions import write_jsonl
from artifacts.store import fault_of
from flows.console.display import READING, Display
from flows.job.prepare import Job, NothingToDo, out_folder, prepare, prepare_without_media
from flows.job.replanning import replanned_once
from flows.machine.launch import DirectLauncher, ForkingLauncher, Launcher
from flows.options.commands import RunOptions
from flows.pipelines import EMBED, Pipeline
from flows.results.foreign_files import refuse_replacing
from flows.results.run_result import RunResult
from flows.results.vectors import VectorsWritten, vector_places, write_vectors
from flows.running.run_observer import OnBegin, RunObserver
from flows.running.stopping import stopped_in_order
from stages.process.forking import ForkServer
from stages.process.stage_process import Listener

LauncherMaker = Callable[[Listener], Launcher]
Filled = TypeVar("Filled", bound=VectorsWritten)


def caption(
    config: RunOptions,
    display: Display,
    make_launcher: LauncherMaker = DirectLauncher,
    on_begin: OnBegin | None = None,
) -> RunResult:
    """Caption everything the configuration names. `on_begin` is given the job and the run's record
    before work begins, again if the model changes meanwhile. Raises PenstockError; what is finished
    stays done."""

    def attempt() -> RunResult:
        refuse_replacing(out_folder(config), config)
        watch = RunObserver(display, on_begin)
        with (
            prepared(config, watch, make_launcher) as (job, launcher),
            watch.working(job, launcher) as (sequence, _, _),
        ):
            return sequence.run()

    return replanned_once(attempt, display.say)


def embed(
    config: RunOptions,
    display: Display,
    make_launcher: LauncherMaker = DirectLauncher,
    on_begin: OnBegin | None = None,
) -> VectorsWritten:
    """Make vectors of everything the configuration names, with `on_begin` as `caption` has it.
    Raises PenstockError; what is finished stays done."""
    refuse_replacing(out_folder(config), config, EMBED)
    return make_vectors(config, display, vector_places, write_vectors, make_launcher, on_begin)


def make_vectors(
    config: RunOptions,
    display: Display,
    places_of: Callable[[Job], dict[str, str]],
    write_out: Callable[[Job], Filled],
    make_launcher: LauncherMaker = DirectLauncher,
    on_begin: OnBegin | None = None,
) -> Filled:
    """Make the same, and have them written by `write_out`, to the places that are told before work
    begins. Raises PenstockError."""

    def attempt() -> Filled:
        watch = RunObserver(display, on_begin)
        with prepared(config, watch, make_launcher, EMBED) as (job, launcher):
            outputs = places_of(job)
            written: list[Filled] = []
            with watch.working(job, launcher, outputs=outputs) as (sequence, record, _):

                def write(last: bool) -> None:
                    if last:
                        written.append(write_out(job))
                        record.value["rows"] = written[-1].vectors
                        record.fails(written[-1].failures)

                sequence.fill(write)
            return written[-1]

    return replanned_once(attempt, display.say)


@contextlib.contextmanager
def prepared(
    config: RunOptions,
    watch: RunObserver,
    make_launcher: LauncherMaker,
    *pipelines: Pipeline,
) -> Iterator[tuple[Job, Launcher]]:
    """Yield the job of a command, and what starts its stages. It is taken through the first of
    `pipelines` that its model is for (none: it captions). Raises PenstockError."""
    refuse_file(out_folder(config))
    watch.doing(READING)
    with stopped_in_order(), contextlib.closing(watch), ForkServer() as forks:
        launcher = ForkingLauncher(make_launcher(watch.listen), forks)
        try:
            if config.sources:
                job = prepare(config, launcher, watch.say, *pipelines, progress=watch.fetched)
            else:
                job = prepare_without_media(config, launcher, *pipelines)
        except NothingToDo as error:
            write_jsonl(out_folder(config) / "failures.jsonl", error.failures)
            raise
        yield job, launcher


def refuse_file(folder: Path) -> None:
    """Refuse a folder that cannot be made because a file is in its place. It is refused before a
    model is read, or downloaded. Raises EnvironmentFault."""
    there = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
    if not there.is_dir():
        raise fault_of(NotADirectoryError(errno.ENOTDIR, ""), folder)
