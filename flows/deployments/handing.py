"""Dispatches partitions of a run to the workers of a pool, and waits until all are done.

All lasting state lies in the store. Each run of a partition has a name that the server can look up.
A dispatcher that died and was restarted therefore finds the runs that it had created. A crashed run
is created again. When fewer partitions are left than there are workers, the running partitions get
a second run. Both runs claim batches one by one, so the output bytes stay the same.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, StateType, WorkerStatus
from prefect.exceptions import PrefectHTTPStatusError

from artifacts.errors import UsageError
from flows.deployments.runs import INTERRUPTED
from flows.job.partitions import Partition

POOL = "gpu"
"""Work pool whose workers process the partitions."""
TAG = "portions of "
"""Prefix of the tag of their runs."""
AHEAD = 3
"""Scheduled or running runs per worker."""
STARTS = 4
"""Attempts for a partition whose runs crash."""
POLL_SECONDS = 5.0
HELP_SECONDS = 60.0
"""Running time after which a partition gets a second run; starting one takes a quarter of it."""
TOO_BUSY = 500
"""Lowest HTTP status that means a fault of the server."""
PATIENCE_SECONDS = 900.0
"""Longest time in seconds without a response of the server."""

MakeParameters = Callable[[Partition, str], dict[str, Any]]
"""Returns the parameters of a run of a partition; the second argument numbers its runs."""


@dataclass(kw_only=True, slots=True)
class PartitionRun:
    """A partition and the state of its runs."""

    portion: Partition
    runs: dict[UUID, StateType] = field(default_factory=dict)
    starts: int = 0
    helped: bool = False
    since: float = 0.0
    """Monotonic time when its first run was seen running; 0: not yet."""
    done: bool = False
    why: str = ""
    """Why it failed for good; empty: it has not."""

    @property
    def ended(self) -> bool:
        return self.done or bool(self.why)


class PartitionDispatch:
    """The runs of all partitions on one pool."""

    def __init__(
        self,
        client: SyncPrefectClient,
        deployment: UUID,
        make_parameters: MakeParameters,
        job: str,
        *,
        helping: bool = True,
    ) -> None:
        """Take the deployment that processes partitions, and the name of the whole job, by which
        its runs are found again. `helping` says whether a partition may get a second run."""
        self._client = client
        self._deployment = deployment
        self._helping = helping
        self._make_parameters = make_parameters
        self._job = job
        self._silent = 0.0

    def all(
        self, portions: Iterable[Partition], on_progress: Callable[[int, int], None]
    ) -> list[PartitionRun]:
        """Process all partitions and return their results. `on_progress` gets the number of
        finished ones and the total. Raises the server's error if it lasts."""
        # Largest first: the last partition to end decides the total time.
        partition_runs = [
            PartitionRun(portion=p) for p in sorted(portions, key=lambda p: (-p.bytes, p.name))
        ]
        waiting, working = deque(partition_runs), list[PartitionRun]()
        while waiting or working:
            self._retry(lambda: self._turn(waiting, working))
            on_progress(sum(one.ended for one in partition_runs), len(partition_runs))
            if waiting or working:
                time.sleep(POLL_SECONDS)
        return partition_runs

    def _retry(self, turn: Callable[[], None]) -> None:
        """Call `turn`. If the server does not respond, skip it until PATIENCE_SECONDS have passed.
        Raises UsageError if the server refuses the request."""
        try:
            turn()
            self._silent = 0.0
        except Exception as error:
            if isinstance(error, PrefectHTTPStatusError) and error.response.status_code < TOO_BUSY:
                reason = " ".join(error.response.text.split())[:300]
                hint = "Give parameters of caption-videos, embed-media or label-images"
                raise UsageError(f"the server refuses a partition: {reason}", hint=hint) from error
            self._silent = self._silent or time.monotonic()
            if time.monotonic() - self._silent > PATIENCE_SECONDS:
                raise

    def _turn(self, waiting: deque[PartitionRun], working: list[PartitionRun]) -> None:
        self._read_states(working)
        working[:] = [one for one in working if not one.ended]
        pool = self._client.read_workers_for_work_pool(POOL)
        workers = max(1, sum(worker.status == WorkerStatus.ONLINE for worker in pool))
        while waiting and len(working) < AHEAD * workers:
            self._start(waiting[0], f"{waiting[0].starts + 1}")
            waiting[0].starts += 1
            working.append(waiting.popleft())
        if self._helping and not waiting and len(working) < workers:
            for one in working:
                if one.since and not one.helped and time.monotonic() - one.since > HELP_SECONDS:
                    self._start(one, f"help {one.starts}")
                    one.helped = True

    def _read_states(self, working: Sequence[PartitionRun]) -> None:
        ids = [run for one in working for run in one.runs]
        if not ids:
            return
        found: dict[UUID, FlowRun] = {}
        for at in range(0, len(ids), 200):
            run_filter = FlowRunFilter(id=FlowRunFilterId(any_=ids[at : at + 200]))
            for run in self._client.read_flow_runs(flow_run_filter=run_filter, limit=200):
                found[run.id] = run
        for one in working:
            self._update(one, [found[run] for run in one.runs if run in found])

    def _update(self, one: PartitionRun, runs: Sequence[FlowRun]) -> None:
        for run in runs:
            if run.state is not None:
                one.runs[run.id] = run.state.type
                if run.state.type == StateType.RUNNING and not one.since:
                    one.since = time.monotonic()
        one.done = StateType.COMPLETED in one.runs.values()
        if one.done or not all(run.state is not None and run.state.is_final() for run in runs):
            return
        if len(runs) < len(one.runs):
            return  # a run was deleted, or the server is behind
        last = max(runs, key=_ended)
        assert last.state is not None
        is_crash = last.state.type == StateType.CRASHED or last.state.name == INTERRUPTED
        if is_crash and one.starts < STARTS:
            one.starts += 1
            one.since, one.helped = 0.0, False
            self._start(one, f"{one.starts}")
        else:
            one.why = f"{last.name} is {last.state.name}: {last.state.message or 'no message'}"

    def _start(self, one: PartitionRun, which: str) -> None:
        run = self._client.create_flow_run_from_deployment(
            self._deployment,
            parameters=self._make_parameters(one.portion, which),
            name=f"{one.portion.name} {which}",
            idempotency_key=f"{self._job} {one.portion.name} {which}",
            tags=[f"{TAG}{self._job}"],
        )
        one.runs[run.id] = StateType.SCHEDULED


def _ended(run: FlowRun) -> datetime:
    assert run.state is not None
    return run.state.timestamp
