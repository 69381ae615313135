"""Runs a command on a Ray cluster, from its configuration to its result: the driver.

1. The files are cut into partitions, whose lists lie in the output folder.
2. Each partition is a task. Their results lie in the store.
3. The last task runs the ordinary command over everything and writes the outputs.

Meanwhile the driver holds the lock of the output folder and keeps its run record. The same call
continues a run after any death.

`Dispatch` submits the tasks of a run, and waits until all have ended. All lasting state lies in the
store. A partition may therefore be processed any number of times, and by two tasks at once, which
claim its batches one by one.

A task takes the GPUs that it asks for, or a whole node of a cluster without GPUs. Ray starts it
again when its worker or node dies.
"""

import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from artifacts.errors import EnvironmentFault, PenstockError, UsageError, redacted
from artifacts.packages import require_extra
from artifacts.records.store import open_store, prepare_store
from artifacts.texts.captions import Failure
from flows.core.console.display import Display, StageStart
from flows.core.job.partitions import FILES, partitions_of
from flows.core.job.prepare import check_names, out_folder
from flows.core.media.generated_files import GeneratedFiles
from flows.core.options.commands import RunOptions
from flows.core.options.model import ALL_GPUS
from flows.execution.run import stopped_in_order
from flows.execution.run_observer import OnBegin
from flows.interfaces.ray.partition import TaskEnd, Terms, process, stages_of, terms_of, withdraw
from flows.outputs.folder.owners import refuse_taking, take
from flows.outputs.folder.run_lock import only_run_in
from flows.outputs.record.record_writer import RecordWriter
from flows.outputs.record.run_read import history_in
from flows.outputs.record.run_record import Partitions
from stages.process.events import Answered

if TYPE_CHECKING:
    from ray import ObjectRef

RETRIES = 4
"""How often Ray starts a task again whose worker or node died."""
AHEAD = 3
"""Tasks submitted per task that can run at once, so that a GPU need not wait for the driver."""
CONNECT_SECONDS = 5.0
HEAD_TRIES = 4
"""How often in a row the head must not answer to be gone."""
GPU_SECONDS = 20.0
"""How long requested GPUs may take to join the cluster."""


class Cluster:
    """A connection to a cluster."""

    def __init__(self, address: str, gpus: int | None = None) -> None:
        """Connect. Each task takes `gpus` GPUs; None: one if the cluster has any, else a node.
        Raises UsageError, EnvironmentFault."""
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        require_extra("ray", "--ray")
        import ray

        self._ray: Any = ray
        self._own = not self._ray.is_initialized()
        if self._own:
            self._connect(address)
        try:
            self.gpus = self._gpus_of_a_task(gpus)
        except BaseException:
            self.close()
            raise
        self._task = self._ray.remote(
            num_cpus=0, num_gpus=self.gpus, max_calls=0, max_retries=RETRIES
        )(run_task)
        self._nodes: dict[ObjectRef[TaskEnd], str] = {}
        """Task → node of a cluster without GPUs."""

    def _connect(self, address: str) -> None:
        if "://" not in address and address != "auto":
            _check_reachable(address)
        before = signal.getsignal(signal.SIGTERM)
        try:
            with _silent_library():
                self._ray.init(address, log_to_driver=False, logging_level="error")
            # It would print on standard output that a node is dead; its tasks run elsewhere.
            self._ray._private.worker.print_to_stdstream = lambda *_, **__: None
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            text = " ".join(redacted(str(error)).split())[:300]
            raise EnvironmentFault(
                f"no connection to the Ray cluster {address}: {text}",
                hint="Check that it runs, and RAY_AUTH_MODE and RAY_AUTH_TOKEN (docs/many.md)",
            ) from error
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, before)  # Ray's own handler ends the process at once

    def close(self) -> None:
        """End the connection, and with it all tasks that still run."""
        if self._own:
            self._ray.shutdown()

    def _gpus_of_a_task(self, gpus: int | None) -> int:
        deadline = time.monotonic() + GPU_SECONDS
        while True:
            most = max((node["Resources"].get("GPU", 0) for node in self._alive()), default=0)
            if gpus is None or most >= gpus:
                return gpus if gpus is not None else int(most >= 1)
            if time.monotonic() > deadline:
                raise UsageError(
                    f"no node of the Ray cluster has {gpus} GPUs, the largest has {most:g}",
                    hint="Ask for fewer, or start nodes with `ray start --num-gpus`",
                )
            time.sleep(1)

    def _alive(self) -> list[dict[str, Any]]:
        """Return the nodes. Raises EnvironmentFault if the head is gone: after a minute without it
        Ray would end this process."""
        for _ in range(HEAD_TRIES):
            with contextlib.suppress(EnvironmentFault):
                _check_reachable(self._ray.get_runtime_context().gcs_address)
                return [node for node in self._ray.nodes() if node["Alive"]]
            time.sleep(CONNECT_SECONDS)
        raise EnvironmentFault(
            "the head of the Ray cluster is gone",
            hint="Finished work is kept; run the same command on another cluster",
        )

    @property
    def slots(self) -> int:
        """Return how many tasks can run at once, at least 1."""
        gpus = (node["Resources"].get("GPU", 0) for node in self._alive())
        return max(1, sum(int(has // self.gpus) if self.gpus else 1 for has in gpus))

    @property
    def window(self) -> int:
        """Return how many tasks may be submitted and not ended."""
        return self.slots * (AHEAD if self.gpus else 1)

    def submit(
        self, config: RunOptions, terms: Terms, avoid: Collection[str] = ()
    ) -> "ObjectRef[TaskEnd]":
        """Submit a task and return it. It runs on none of the nodes to `avoid`, by id, if there are
        others."""
        ids = [node["NodeID"] for node in self._alive()]
        options: dict[str, Any] = {"scheduling_strategy": "SPREAD"}
        if not self.gpus:
            options = self._on_idle_node([node for node in ids if node not in avoid] or ids)
        elif avoid and set(ids) - set(avoid):
            options["label_selector"] = {"ray.io/node-id": f"!in({','.join(avoid)})"}
        name = f"penstock {terms.partition or 'outputs'}"
        task: ObjectRef[TaskEnd] = self._task.options(name=name, **options).remote(config, terms)
        if not self.gpus:
            self._nodes[task] = options["scheduling_strategy"].node_id
        return task

    def _on_idle_node(self, ids: Sequence[str]) -> dict[str, Any]:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        busy = list(self._nodes.values())
        node = min(ids, key=busy.count)
        return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=True)}

    def ended(
        self, tasks: Sequence["ObjectRef[TaskEnd]"], seconds: float
    ) -> Iterator[tuple["ObjectRef[TaskEnd]", TaskEnd]]:
        """Wait for tasks. Yield those that have ended, with what they returned; what Ray says is
        an EnvironmentFault."""
        ready, _ = self._ray.wait(list(tasks), num_returns=1, timeout=seconds)
        for task in ready:
            self._nodes.pop(task, None)
            try:
                returned: TaskEnd = self._ray.get(task)
            except Exception as error:  # lost too often, or not importable there
                text = " ".join(redacted(str(error)).split())[:300]
                fault = EnvironmentFault(
                    f"a Ray task failed ({type(error).__name__}: {text})",
                    hint="Check that every node has this version of Penstock and enough memory",
                )
                returned = {"error": fault, "retry": False}
            yield task, returned

    def cancel(self, task: "ObjectRef[TaskEnd]") -> None:
        """Stop a task in order; nothing is lost."""
        self._nodes.pop(task, None)
        with contextlib.suppress(Exception):
            self._ray.cancel(task)


def run_task(config: RunOptions, terms: Terms) -> TaskEnd:
    """Run one task in a worker of Ray. Return as `process` does, with the id of the node."""
    import ray

    return {"node_id": ray.get_runtime_context().get_node_id(), **process(config, terms)}


@contextlib.contextmanager
def _silent_library() -> Iterator[None]:
    """Discard what is written to the standard error: Ray's library prints the same warning each
    second while it tries to connect."""
    stderr = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def _check_reachable(address: str) -> None:
    """Check that something listens, because Ray would try for minutes. Raises UsageError for what
    is no address, EnvironmentFault."""
    try:
        place = urlsplit(f"//{address}")
        host, port = place.hostname, place.port
    except ValueError:
        host = port = None
    if not host or not port:
        raise UsageError(
            f"{address!r} is no address of a Ray cluster", hint="Give HOST:PORT, or auto"
        )
    try:
        socket.create_connection((host, port), CONNECT_SECONDS).close()
    except OSError as error:
        raise EnvironmentFault(
            f"nothing answers at {address} ({error.strerror or error})",
            hint="Start a cluster there with `ray start --head --port PORT`, or correct --ray",
        ) from error


ATTEMPTS = 5
"""Attempts for a task that the environment of its node fails."""
PAUSE_SECONDS = 2.0
"""Pause before the second attempt; each further one doubles it."""
POLL_SECONDS = 2.0
HELP_SECONDS = 60.0
"""Time for which slots are idle until the partitions that still run get a second task."""
FAILING_SHARE = 0.1
"""Share of failed tasks beyond which the run ends."""


@dataclass(kw_only=True, slots=True, eq=False)
class TaskRun:
    """A partition, or the outputs of all, and the tasks that were submitted for it."""

    terms: Terms
    tasks: list["ObjectRef[TaskEnd]"] = field(default_factory=list)
    """Tasks that have not ended."""
    attempts: int = 0
    due: float = 0.0
    """Monotonic time before which it is not submitted again."""
    failing: set[str] = field(default_factory=set)
    """Ids of the nodes whose environment failed it."""
    helped: bool = False
    result: TaskEnd = field(default_factory=TaskEnd)
    """What the first task returned that succeeded."""
    error: PenstockError | None = None
    """Why it failed for good."""


class Dispatch:
    """The tasks of a run on a cluster."""

    def __init__(self, cluster: Cluster, config: RunOptions) -> None:
        self._cluster, self._config = cluster, config
        self._owner: dict[ObjectRef[TaskEnd], TaskRun] = {}
        self._busy_at = time.monotonic()
        """Last time when no slot was idle."""

    def all(self, terms: Sequence[Terms], on_end: Callable[[TaskRun], None]) -> list[TaskRun]:
        """Run a task for each of `terms`, in this order, and return how they ended. `on_end` is
        called for each. Raises the error of one if too many fail."""
        runs = [TaskRun(terms=task_terms) for task_terms in terms]
        waiting, failed = list(runs), 0
        try:
            while waiting or self._owner:
                self._submit_due(waiting)
                self._help(waiting)
                for run in self._ended():
                    if not run.result and run.error is None:
                        waiting.append(run)
                        continue
                    on_end(run)
                    failed += run.error is not None
                    if run.error is not None and failed > FAILING_SHARE * len(runs):
                        raise run.error
        finally:
            for task in self._owner:
                self._cluster.cancel(task)
            self._owner.clear()
        return runs

    def _submit_due(self, waiting: list[TaskRun]) -> None:
        room = max(0, self._cluster.window - len(self._owner))
        for run in [run for run in waiting if run.due <= time.monotonic()][:room]:
            waiting.remove(run)
            run.attempts += 1
            self._submit(run)

    def _submit(self, run: TaskRun) -> None:
        task = self._cluster.submit(self._config, run.terms, sorted(run.failing))
        run.tasks.append(task)
        self._owner[task] = run

    def _help(self, waiting: Sequence[TaskRun]) -> None:
        """Submit the last partitions once more when slots have been idle for long."""
        if waiting or len(self._owner) >= self._cluster.slots:
            self._busy_at = time.monotonic()
        if time.monotonic() - self._busy_at < HELP_SECONDS:
            return
        for run in list(self._owner.values()):
            if run.terms.partition and not run.helped and len(self._owner) < self._cluster.slots:
                run.helped = True
                self._submit(run)

    def _ended(self) -> Iterator[TaskRun]:
        """Wait for tasks. Yield what has ended with them, and what is to be submitted again."""
        if not self._owner:
            return time.sleep(PAUSE_SECONDS)
        for task, result in self._cluster.ended(list(self._owner), POLL_SECONDS):
            run = self._owner.pop(task, None)
            if run is None:  # its other task was faster, and this one was stopped
                continue
            run.tasks.remove(task)
            if result["error"] is None:
                run.result = result
                for other in run.tasks:
                    self._cluster.cancel(other)
                    del self._owner[other]
            elif run.tasks:
                continue  # the other one may still succeed
            elif result["retry"] and run.attempts < ATTEMPTS:
                run.failing.add(result["node_id"])
                run.due = time.monotonic() + PAUSE_SECONDS * 2 ** (run.attempts - 1)
            else:
                run.error = result["error"]
            yield run


PARTITIONS = "partitions"
"""Name of the bar, and of the field of the run record."""
OnProgress = Callable[[int, int], None]
"""Called with the number of partitions that have ended, and the number of all."""


def run_on_cluster(
    command: str,
    config: RunOptions,
    display: Display,
    address: str,
    *,
    files: int = FILES,
    on_begin: OnBegin | None = None,
    on_progress: OnProgress = lambda done, total: None,
) -> Any:
    """Run `caption`, `embed` or `label` on the cluster at `address`, in partitions of at most
    `files` files. Each task takes as many GPUs as `--gpus` says; by default one, if the cluster has
    any. The last task calls `on_begin`. Return the result of the plain command. Raises
    PenstockError; finished records stay."""
    gpus = gpus_of_a_task(config)
    check_names(config, stages_of(command, config.groups.tagger.tagger))
    refuse_taking(config, command)
    store = open_store(config.store_url)
    config = replace(config, store=store.url, out=str(out_folder(config)))
    with closing(display), stopped_in_order():
        display.doing(f"connecting to the Ray cluster {address}")
        with closing(Cluster(address, gpus)) as cluster:
            prepare_store(store)
            terms = terms_of(command, config, on_begin)
            try:
                driver = Driver(cluster, config, terms, display)
                driver.process_partitions(files, on_progress)
                return driver.write_outputs()
            finally:
                with suppress(EnvironmentFault):
                    withdraw(config, terms)


def gpus_of_a_task(config: RunOptions) -> int | None:
    """Return how many GPUs each task takes; None: one, if the cluster has any. Raises UsageError
    for a list, since Ray selects the GPUs of a task."""
    gpus = config.groups.gpus.gpus
    if gpus is not None and "," in gpus:
        raise UsageError(
            f"--gpus {gpus} names GPUs, and Ray selects those of a task",
            hint="Give the number of GPUs of a task",
        )
    return None if gpus in (None, ALL_GPUS) else int(gpus or 1)


class Driver:
    """The tasks of one run, in the order of the module's docstring."""

    def __init__(
        self, cluster: Cluster, config: RunOptions, terms: Terms, display: Display
    ) -> None:
        self._dispatch = Dispatch(cluster, config)
        self._config, self._terms, self._display = config, terms, display
        self._count = Partitions()

    def process_partitions(self, files: int, on_progress: OnProgress) -> None:
        """Process all partitions. Raises the error of one if too many fail."""
        tagger, out = self._config.groups.tagger.tagger, self._terms.out
        pipeline = stages_of(self._terms.command, tagger)
        with only_run_in(out, f"{pipeline[-1].verb} into", "give another --out"):
            partitions, missing = partitions_of(self._config, files)
            # Largest first: the last partition to end decides the total time.
            partitions.sort(key=lambda partition: (-partition.bytes, partition.name))
            self._count.total = len(partitions)
            writer = RecordWriter(out, pipeline)
            writer.record.partitions = self._count
            writer.carry_on(history_in(out), ())
            in_partitions = sum(partition.files for partition in partitions)
            writer.record.media.total = in_partitions + len(missing)
            store = open_store(self._config.store_url)
            own = GeneratedFiles(store, out=out)
            take(self._config, self._terms.command, writer, store.url, own)
            writer.write(force=True)
            total, counts = len(partitions), "partition"
            self._display.stage(
                StageStart(name=PARTITIONS, total=total, done=0, verb="processing", counts=counts)
            )

            def on_end(run: TaskRun) -> None:
                self._count_ended(run, writer)
                on_progress(self._count.done + self._count.failed, len(partitions))

            terms = [replace(self._terms, partition=partition.name) for partition in partitions]
            try:
                self._dispatch.all(terms, on_end)
            except BaseException:
                with writer.recording_end():
                    raise
        self._display.close()

    def _count_ended(self, run: TaskRun, writer: RecordWriter) -> None:
        self._count.done += run.error is None
        self._count.failed += run.error is not None
        if run.error is not None:
            self._display.print_line(f"partition {run.terms.partition} failed: {run.error}")
        self._count.seconds += run.result.get("seconds", 0.0)
        for stage in writer.record.stages:
            stage.items += run.result.get("stages", {}).get(stage.name, 0)
        self._display.on_event(PARTITIONS, Answered(label=run.terms.partition))
        writer.write(force=False)

    def write_outputs(self) -> Any:
        """Write the outputs in one more task, which takes the lock of the folder and tries failed
        files again. Return its result. Raises its error."""
        self._display.doing("writing the outputs")
        last = replace(self._terms, partitions=self._count)
        (run,) = self._dispatch.all([last], lambda _: None)
        result = run.result["result"]
        with (
            suppress(FileNotFoundError),
            open(last.out / "failures.jsonl", encoding="utf-8") as file,
        ):
            result.failures += [Failure(**json.loads(line)) for line in file]
        return result
