"""Connects to a Ray cluster and submits the tasks of a run.

A task takes the GPUs that it asks for, or a whole node of a cluster without GPUs. Ray starts it
again when its worker or node dies.
"""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

from artifacts.errors import EnvironmentFault, UsageError, redacted
from artifacts.packages import require_extra
from flows.many.partition import Terms, process
from flows.options.commands import RunOptions

RETRIES = 4
"""How often Ray starts a task again whose worker or node died."""
AHEAD = 3
"""Tasks submitted per task that can run at once, so that a GPU need not wait for the driver."""
CONNECT_SECONDS = 5.0
HEAD_TRIES = 4
"""How often in a row the head must not answer to be gone."""
GPU_SECONDS = 20.0
"""How long requested GPUs may take to join the cluster."""


def load_ray() -> Any:
    """Import Ray. Raises MissingPackage."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    require_extra("ray", "--ray")
    import ray

    return ray


class Cluster:
    """A connection to a cluster."""

    def __init__(self, address: str, gpus: int | None = None) -> None:
        """Connect. Each task takes `gpus` GPUs; None: one if the cluster has any, else a node.
        Raises UsageError, EnvironmentFault."""
        self._ray = load_ray()
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
        self._nodes: dict[Any, str] = {}
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

    def submit(self, config: RunOptions, terms: Terms, avoid: Collection[str] = ()) -> Any:
        """Submit a task and return it. It runs on none of the nodes to `avoid`, by id, if there are
        others."""
        ids = [node["NodeID"] for node in self._alive()]
        options: dict[str, Any] = {"scheduling_strategy": "SPREAD"}
        if not self.gpus:
            options = self._on_idle_node([each for each in ids if each not in avoid] or ids)
        elif avoid and set(ids) - set(avoid):
            options["label_selector"] = {"ray.io/node-id": f"!in({','.join(avoid)})"}
        name = f"penstock {terms.partition or 'outputs'}"
        task = self._task.options(name=name, **options).remote(config, terms)
        if not self.gpus:
            self._nodes[task] = options["scheduling_strategy"].node_id
        return task

    def _on_idle_node(self, ids: Sequence[str]) -> dict[str, Any]:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        busy = list(self._nodes.values())
        node = min(ids, key=busy.count)
        return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=True)}

    def ended(self, tasks: Sequence[Any], seconds: float) -> Iterator[tuple[Any, dict[str, Any]]]:
        """Wait for tasks. Yield those that have ended, with what they returned; what Ray says is
        an EnvironmentFault."""
        ready, _ = self._ray.wait(list(tasks), num_returns=1, timeout=seconds)
        for task in ready:
            self._nodes.pop(task, None)
            try:
                found: dict[str, Any] = self._ray.get(task)
            except Exception as error:  # lost too often, or not importable there
                text = " ".join(redacted(str(error)).split())[:300]
                fault = EnvironmentFault(
                    f"a Ray task failed ({type(error).__name__}: {text})",
                    hint="Check that every node has this version of Penstock and enough memory",
                )
                found = {"error": fault, "retry": False}
            yield task, found

    def cancel(self, task: Any) -> None:
        """Stop a task in order; nothing is lost."""
        self._nodes.pop(task, None)
        with contextlib.suppress(Exception):
            self._ray.cancel(task)


def run_task(config: RunOptions, terms: Terms) -> dict[str, Any]:
    """Run one task in a worker of Ray. Return as `process` does, with the id of the node."""
    import ray

    return {"node_id": ray.get_runtime_context().get_node_id(), **process(config, terms)}


@contextlib.contextmanager
def _silent_library() -> Iterator[None]:
    """Discard what is written to the standard error: Ray's library prints the same warning each
    second while it tries to connect."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


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
