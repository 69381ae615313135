"""Restarts crashed runs: the flow `sweep-crashed`, meant to run every few minutes.

A run that ended without a request is either Crashed (its process was killed, or its machine is
gone) or Interrupted (its stage was killed too often). Its finished work is in the store, so a
restart computes only what is missing.
"""

import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Annotated

from prefect import flow, get_run_logger
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowFilter, FlowRunFilter
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.responses import OrchestrationResult, SetStateStatus
from prefect.client.schemas.sorting import FlowRunSort
from prefect.states import Completed, Scheduled
from pydantic import Field

from flows.interfaces.prefect.crashed import close_ended
from flows.interfaces.prefect.runs import INTERRUPTED, SKIPPED, Ended

NAME = "sweep-crashed"
AGAIN = f"Started again by {NAME}"
SWEPT = (
    "caption-videos",
    "ask-media",
    "embed-media",
    "label-images",
    "sift-media",
    "index-folder",
    "rebuild-features",
    "collect-store",
    "export-model",
    "tune-captions",
    "learn-captions",
    "caption-many",
    "embed-many",
    "label-many",
)
"""Flows whose runs may be started again at any time."""
PAGE = 200
"""Runs that the server gives at once."""


@flow(name=NAME, flow_run_name="start crashed runs again", persist_result=False)
def sweep_crashed(
    max_retries: Annotated[int, Field(ge=0)] = 3,
    older_than_seconds: Annotated[float, Field(ge=0)] = 60.0,
    younger_than_hours: Annotated[float, Field(gt=0)] = 168.0,
) -> Ended:
    """Start runs again that crashed, and make Crashed what of their tasks still says Running.

    Of each job (a deployment with its parameters) only the newest run is looked at, at most
    `max_retries` times. It must have ended `older_than_seconds` ago, so that whoever is at work on
    the machine can be done, and have been due within `younger_than_hours`.
    """
    now = datetime.now(UTC)
    ended_before = now - timedelta(seconds=older_than_seconds)
    with get_client(sync_client=True) as client:
        closed = close_ended(client, SWEPT, ended_before)
        crashed = verdicts(
            runs_since(client, now - timedelta(hours=younger_than_hours)),
            now=now,
            older_than=timedelta(seconds=older_than_seconds),
        )
        report = [start_again(client, run, why_not, max_retries) for run, why_not in crashed]
        drop_late(client, now)
    for line in report:
        get_run_logger().info("%s", line)
    if closed:
        get_run_logger().info(
            "task runs of ended runs still marked Running: %d, now Crashed", closed
        )
    again = sum(line.endswith(" times") for line in report)
    return Completed(message=f"{again} of {len(crashed)} crashed runs started again")


def runs_since(client: SyncPrefectClient, since: datetime) -> Iterator[FlowRun]:
    """Yield all runs of the flows that are swept, the oldest first."""
    due = {"expected_start_time": {"after_": since}}
    for offset in count(0, PAGE):
        page = client.read_flow_runs(
            flow_filter=FlowFilter.model_validate({"name": {"any_": SWEPT}}),
            flow_run_filter=FlowRunFilter.model_validate(due),
            sort=FlowRunSort.EXPECTED_START_TIME_ASC,
            limit=PAGE,
            offset=offset,
        )
        yield from page
        if len(page) < PAGE:
            return


def drop_late(client: SyncPrefectClient, now: datetime) -> None:
    """Delete sweeps that were due already. A worker that was busy for hours has one of every ten
    minutes before it, which would find what this one has found."""
    waiting = {"state": {"type": {"any_": [StateType.SCHEDULED]}}}
    late = client.read_flow_runs(
        flow_filter=FlowFilter.model_validate({"name": {"any_": [NAME]}}),
        flow_run_filter=FlowRunFilter.model_validate(
            {**waiting, "expected_start_time": {"before_": now}}
        ),
        limit=PAGE,
    )
    for run in late:
        if run.auto_scheduled:
            client.delete_flow_run(run.id)


def verdicts(
    runs: Iterable[FlowRun], *, now: datetime, older_than: timedelta
) -> list[tuple[FlowRun, str]]:
    """Return every run that ended unasked, and why it is left alone; empty for one that is started
    again. What is due later decides nothing yet,
    and what was skipped decides nothing."""
    jobs: dict[str, list[FlowRun]] = {}
    for run in runs:
        if run.state is not None and due(run) <= now and run.state.name != SKIPPED:
            jobs.setdefault(job_of(run), []).append(run)
    crashed = []
    for of_job in jobs.values():
        of_job.sort(key=due)
        newest = of_job[-1]
        for run in filter(has_crashed, of_job):
            if run is newest:
                why_not = why_left_alone(run, now, older_than)
            else:
                why_not = f"{newest.name}, {state_name(newest)}, is a newer run of the same job"
            crashed.append((run, why_not))
    return crashed


def why_left_alone(run: FlowRun, now: datetime, older_than: timedelta) -> str:
    """Return why the newest run of a job is not started again; empty if nothing speaks against
    it."""
    assert run.state is not None
    if run.deployment_id is None:
        return "it was started by hand: the same command goes on with it"
    if now - run.state.timestamp < older_than:
        return f"it ended less than {older_than.total_seconds():.0f} s ago"
    return ""


def start_again(client: SyncPrefectClient, run: FlowRun, why_not: str, max_retries: int) -> str:
    """Do as `prefect flow-run retry` does; returns a line that tells it."""
    name = f"{run.name} ({state_name(run)})"
    if why_not:
        return f"{name} is left alone: {why_not}"
    assert run.state is not None
    now = client.read_flow_run(run.id)
    if now.state is None or now.state.id != run.state.id:
        return f"{name} is left alone: somebody has started it again"
    # The run's own count stays 0 where its process ends before it says Running.
    messages = [state.message or "" for state in client.read_flow_run_states(run.id)]
    starts = sum(message.startswith(AGAIN) for message in messages)
    if starts >= max_retries:
        return f"{name} is left alone: it was started again {starts} times already; see why it ends"
    times = f"{starts + 1} of {max_retries} times"
    answer: OrchestrationResult[None] = client.set_flow_run_state(
        run.id, Scheduled(message=f"{AGAIN}, {times}"), force=True
    )
    if answer.status != SetStateStatus.ACCEPT:
        return f"{name} could not be started again: {answer.details}"
    return f"{name} is started again, {times}"


def has_crashed(run: FlowRun) -> bool:
    state = run.state
    assert state is not None
    return state.type == StateType.CRASHED or (
        state.type == StateType.FAILED and state.name == INTERRUPTED
    )


def job_of(run: FlowRun) -> str:
    """Return the name of a run's job; runs of one job do the same work."""
    return json.dumps([run.flow_id, run.deployment_id, run.parameters], sort_keys=True, default=str)


def due(run: FlowRun) -> datetime:
    return run.expected_start_time or run.start_time or datetime.min.replace(tzinfo=UTC)


def state_name(run: FlowRun) -> str:
    return (run.state.name if run.state else None) or "unknown"
