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
"""Pool whose workers do the portions."""
TAG = "portions of "
"""Begins the tag of their runs."""
AHEAD = 3
"""Runs that wait or work, for each worker."""
STARTS = 4
"""Times that a portion is asked for, if its runs crash."""
POLL_SECONDS = 5.0
HELP_SECONDS = 60.0
"""Time for which a run works before it gets help: to start one takes a quarter of that."""
TOO_BUSY = 500
"""Status from which a server says that it is not the request's fault."""
PATIENCE_SECONDS = 900.0
"""Time for which a server may not answer."""

Ask = Callable[[Partition, str], dict[str, Any]]
"""Parameters of a run of a portion; the second says which of its runs it is."""


@dataclass(kw_only=True, slots=True)
class PartitionRun:
    """A partition and the state of its runs."""

    portion: Partition
    runs: dict[UUID, StateType] = field(default_factory=dict)
    starts: int = 0
    helped: bool = False
    since: float = 0.0
    """When its first run was seen at work, on the monotonic clock; 0: not yet."""
    done: bool = False
    why: str = ""
    """Why it is not done, when it never will be."""

    @property
    def ended(self) -> bool:
        return self.done or bool(self.why)


class PartitionDispatch:
    """The runs of all partitions on one pool."""

    def __init__(
        self,
        client: SyncPrefectClient,
        deployment: UUID,
        ask: Ask,
        job: str,
        *,
        helping: bool = True,
    ) -> None:
        """Take the deployment whose runs do portions, and the name of the whole job, by which runs
        are found again. `helping` is whether two runs may do one portion."""
        self._client = client
        self._deployment = deployment
        self._helping = helping
        self._ask = ask
        self._job = job
        self._silent = 0.0

    def all(
        self, portions: Iterable[Partition], tell: Callable[[int, int], None]
    ) -> list[PartitionRun]:
        """Return what became of each, once all have ended. `tell` hears how many are done, of how
        many. Raises what a server answers that does not answer for long."""
        # The largest first: what ends last decides when all have ended.
        handed = [
            PartitionRun(portion=p) for p in sorted(portions, key=lambda p: (-p.bytes, p.name))
        ]
        waiting, working = deque(handed), list[PartitionRun]()
        while waiting or working:
            self._patiently(lambda: self._turn(waiting, working))
            tell(sum(one.ended for one in handed), len(handed))
            if waiting or working:
                time.sleep(POLL_SECONDS)
        return handed

    def _patiently(self, turn: Callable[[], None]) -> None:
        """Do a turn; a server that does not answer costs the turn. Raises UsageError for what it
        refuses."""
        try:
            turn()
            self._silent = 0.0
        except Exception as error:
            if isinstance(error, PrefectHTTPStatusError) and error.response.status_code < TOO_BUSY:
                words = " ".join(error.response.text.split())[:300]
                hint = "Give what caption-videos, embed-media or label-images takes"
                raise UsageError(f"the server refuses a portion: {words}", hint=hint) from error
            self._silent = self._silent or time.monotonic()
            if time.monotonic() - self._silent > PATIENCE_SECONDS:
                raise

    def _turn(self, waiting: deque[PartitionRun], working: list[PartitionRun]) -> None:
        self._look(working)
        working[:] = [one for one in working if not one.ended]
        workers = self._workers()
        while waiting and len(working) < AHEAD * workers:
            self._start(waiting[0], f"{waiting[0].starts + 1}")
            waiting[0].starts += 1
            working.append(waiting.popleft())
        if self._helping and not waiting and len(working) < workers:
            for one in working:
                if one.since and not one.helped and time.monotonic() - one.since > HELP_SECONDS:
                    self._start(one, f"help {one.starts}")
                    one.helped = True

    def _look(self, working: Sequence[PartitionRun]) -> None:
        """Learn how the runs stand, by one question."""
        ids = [run for one in working for run in one.runs]
        if not ids:
            return
        found: dict[UUID, FlowRun] = {}
        for at in range(0, len(ids), 200):
            asked = FlowRunFilter(id=FlowRunFilterId(any_=ids[at : at + 200]))
            for run in self._client.read_flow_runs(flow_run_filter=asked, limit=200):
                found[run.id] = run
        for one in working:
            self._judge(one, [found[run] for run in one.runs if run in found])

    def _judge(self, one: PartitionRun, runs: Sequence[FlowRun]) -> None:
        for run in runs:
            if run.state is not None:
                one.runs[run.id] = run.state.type
                if run.state.type == StateType.RUNNING and not one.since:
                    one.since = time.monotonic()
        one.done = StateType.COMPLETED in one.runs.values()
        if one.done or not all(run.state is not None and run.state.is_final() for run in runs):
            return
        if len(runs) < len(one.runs):
            return  # somebody deleted one, or the server is behind
        last = max(runs, key=_ended)
        assert last.state is not None
        unasked = last.state.type == StateType.CRASHED or last.state.name == INTERRUPTED
        if unasked and one.starts < STARTS:
            one.starts += 1
            one.since, one.helped = 0.0, False
            self._start(one, f"{one.starts}")
        else:
            one.why = f"{last.name} is {last.state.name}: {last.state.message or 'no word of it'}"

    def _start(self, one: PartitionRun, which: str) -> None:
        run = self._client.create_flow_run_from_deployment(
            self._deployment,
            parameters=self._ask(one.portion, which),
            name=f"{one.portion.name} {which}",
            idempotency_key=f"{self._job} {one.portion.name} {which}",
            tags=[f"{TAG}{self._job}"],
        )
        one.runs[run.id] = StateType.SCHEDULED

    def _workers(self) -> int:
        """Return how many workers there are; one, where none is up yet."""
        found = self._client.read_workers_for_work_pool(POOL)
        return max(1, sum(worker.status == WorkerStatus.ONLINE for worker in found))


def _ended(run: FlowRun) -> datetime:
    assert run.state is not None
    return run.state.timestamp
