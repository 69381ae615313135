"""Runs a command on a Ray cluster, from its configuration to its result: the driver.

1. The files are cut into partitions, whose lists lie in the output folder.
2. Each partition is a task. Their results lie in the store.
3. The last task runs the ordinary command over everything and writes the outputs.

Meanwhile the driver holds the lock of the output folder and keeps its run record. The same call
continues a run after any death.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from artifacts.captions import Failure
from artifacts.errors import EnvironmentFault
from artifacts.store import open_store, prepare_store
from flows.console.display import Display
from flows.job.partitions import FILES, partitions_of
from flows.job.prepare import check_names, out_folder
from flows.many.cluster import Cluster
from flows.many.dispatch import Dispatch, TaskRun
from flows.many.partition import Terms, terms_of, withdraw
from flows.media.generated_files import GeneratedFiles
from flows.options.commands import RunOptions
from flows.pipelines import CAPTION, EMBED, LABEL, Pipeline
from flows.results.owners import refuse_taking, take
from flows.results.run_record import RunRecord
from flows.running.run import stopped_in_order
from flows.running.run_observer import only_run_in
from stages.process.events import Item

PIPELINES: Mapping[str, Pipeline] = {"caption": CAPTION, "embed": EMBED, "label": LABEL}
PARTITIONS = "partitions"
"""Name of the bar, and of the field of the run record."""
OnProgress = Callable[[int, int], None]
"""Called with the number of partitions that have ended, and the number of all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ManyResult:
    """The result of a run on a cluster, as its last task told it."""

    out: Path
    exit_code: int
    text: str
    values: Mapping[str, Any]
    cells: Mapping[str, Any]
    made: int
    """Number of captions, vectors or labels."""
    failures: list[Failure] = field(default_factory=list)
    warnings: Sequence[str] = ()
    lines: Sequence[str] = ()

    def line(self) -> str:
        """Return the outcome in one line."""
        return self.text

    def row(self) -> dict[str, Any]:
        """Return what was made, as a row of a table."""
        return dict(self.cells)

    def to_json(self) -> dict[str, Any]:
        """Return the outcome for programs."""
        return dict(self.values)

    def notes(self) -> Sequence[str]:
        """Return what the command says besides."""
        return self.lines


def run_on_cluster(
    command: str,
    config: RunOptions,
    display: Display,
    address: str,
    *,
    files: int = FILES,
    gpus: int | None = None,
    recorded: Mapping[str, Any] | None = None,
    on_progress: OnProgress = lambda done, total: None,
) -> ManyResult:
    """Run `caption`, `embed` or `label` on the cluster at `address`, in partitions of at most
    `files` files. Each task takes `gpus` GPUs; None: one if the cluster has any. `recorded` is the
    command of the run record. Raises PenstockError; finished records stay."""
    pipeline = PIPELINES[command]
    check_names(config, pipeline)
    refuse_taking(config, command)
    store = open_store(config.store_url)
    config = replace(config, store=store.url, out=str(out_folder(config)))
    with closing(display), stopped_in_order():
        display.doing(f"connecting to the Ray cluster {address}")
        with closing(Cluster(address, gpus)) as cluster:
            prepare_store(store)
            with shared_terms(command, config) as terms:
                driver = Driver(cluster, config, terms, display, on_progress)
                with only_run_in(driver.out, f"{pipeline[-1].verb} into", "give another --out"):
                    driver.process_partitions(pipeline, files, recorded)
                ended = driver.write_outputs(recorded)  # by a run that takes that lock
    return result_of(driver.out, ended)


@contextmanager
def shared_terms(command: str, config: RunOptions) -> Iterator[Terms]:
    """Yield the terms of a run, whose token lies in its store meanwhile."""
    terms = terms_of(command, config)
    try:
        yield terms
    finally:
        with suppress(EnvironmentFault):
            withdraw(config, terms)


class Driver:
    """The tasks of one run, in the order of the module's docstring."""

    def __init__(
        self,
        cluster: Cluster,
        config: RunOptions,
        terms: Terms,
        display: Display,
        on_progress: OnProgress,
    ) -> None:
        self.out = out_folder(config)
        self._dispatch = Dispatch(cluster, config)
        self._config, self._terms, self._display = config, terms, display
        self._on_progress = on_progress
        self._count: dict[str, Any] = {"total": 0, "done": 0, "failed": 0, "seconds": 0.0}

    def process_partitions(
        self, pipeline: Pipeline, files: int, recorded: Mapping[str, Any] | None
    ) -> None:
        """Process all partitions. Raises the error of one if too many fail."""
        partitions, missing = partitions_of(self._config, files)
        # Largest first: the last partition to end decides the total time.
        partitions.sort(key=lambda each: (-each.bytes, each.name))
        self._count["total"] = len(partitions)
        record = RunRecord(self.out, pipeline, command=recorded, partitions=self._count)
        record.value["media"]["total"] = sum(each.files for each in partitions) + len(missing)
        store = self._config.store
        own = GeneratedFiles(open_store(store), out=self.out)
        for note in take(self._config, self._terms.command, record, store, own):
            self._display.print_line(note)
        record.write(force=True)
        self._display.stage(PARTITIONS, len(partitions), 0, verb="processing partitions")

        def on_end(run: TaskRun) -> None:
            self._tell(run, record)

        terms = [replace(self._terms, partition=each.name) for each in partitions]
        try:
            self._dispatch.all(terms, on_end)
        except BaseException:
            with record.recording_end():
                raise
        self._display.close()

    def _tell(self, run: TaskRun, record: RunRecord) -> None:
        """Show and record that a partition has ended."""
        self._count["done" if run.error is None else "failed"] += 1
        if run.error is not None:
            self._display.print_line(f"partition {run.terms.partition} failed: {run.error}")
        result = run.result or {}
        self._count["seconds"] += result.get("seconds", 0.0)
        for stage in record.value["stages"]:
            stage["items"] += result.get("stages", {}).get(stage["name"], 0)
        self._display.on_event(PARTITIONS, Item(label=run.terms.partition))
        self._on_progress(self._count["done"] + self._count["failed"], self._count["total"])
        record.write(force=False)

    def write_outputs(self, recorded: Mapping[str, Any] | None) -> Mapping[str, Any]:
        """Write the outputs in one more task, which also tries again what has failed. Return what
        it returned. Raises its error."""
        self._display.doing("writing the outputs")
        record = {"command": recorded, PARTITIONS: self._count}
        (run,) = self._dispatch.all([replace(self._terms, record=record)], lambda _: None)
        assert run.result is not None
        return run.result


def result_of(out: Path, ended: Mapping[str, Any]) -> ManyResult:
    """Return the result of a run, from what its last task returned."""
    failures = []
    with suppress(FileNotFoundError), open(out / "failures.jsonl", encoding="utf-8") as file:
        failures = [Failure(**json.loads(line)) for line in file]
    names = ("exit_code", "made", "text", "values", "cells", "warnings", "lines")
    return ManyResult(out=out, failures=failures, **{name: ended[name] for name in names})
