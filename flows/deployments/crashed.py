"""Closes on Prefect's server what a killed process left open: task runs that would stay Running for
ever, and a page that would show the run as active.
"""

import logging
from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterKey,
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterEndTime,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateType,
)
from prefect.client.schemas.objects import TERMINAL_STATES, Artifact, StateType, TaskRun
from prefect.context import FlowRunContext
from prefect.states import Crashed

from flows.deployments.patience import impatient

logger = logging.getLogger(__name__)

KEY = "penstock-run"
"""Key of the page of a run."""
RUNNING = "**running**"
"""Beginning of the page of a run that goes on."""
CRASHED = (
    "**crashed**\n\nThe process was killed before it could say what it had made: the numbers below"
    " are those of its beginning. What is finished stays done, and the next attempt goes on there."
)
"""What stands there once its process was killed."""
MESSAGE = "Nobody heard how this task run ended: its process was killed, or the server was away"
MOST = 200
"""Task runs that the server gives at once."""
UNFINISHED = TaskRunFilter(
    state=TaskRunFilterState(
        type=TaskRunFilterStateType(any_=[s for s in StateType if s not in TERMINAL_STATES])
    )
)


def close_earlier_attempts() -> None:
    """Close what earlier attempts of the flow run that is going on left open. A server that does
    not answer costs a warning; the sweep tries again."""
    context = FlowRunContext.get()
    flow_run = context.flow_run if context else None
    if flow_run is None or flow_run.run_count < 2:
        return
    try:
        with impatient(), get_client(sync_client=True) as client:
            open_tasks = tasks_of(client, [flow_run.id])
            close(client, [t for t in open_tasks if t.flow_run_run_count < flow_run.run_count])
            close_pages(client, [flow_run.id])
    except Exception as error:
        logger.warning("task runs of the attempt before were not closed: %s", error)


def close_crashed(flow_run: UUID) -> None:
    """Close what a flow run that has just crashed left open, as far as the server answers."""
    try:
        with impatient(), get_client(sync_client=True) as client:
            state = client.read_flow_run(flow_run).state
            if state is None or not state.is_crashed():
                return  # it has said itself how it ended, and its tasks may be about to
            close(client, tasks_of(client, [flow_run]))
            close_pages(client, [flow_run])
    except Exception as error:
        logger.warning("task runs of a crashed run were not closed: %s", error)


def close_ended(client: SyncPrefectClient, flows: Sequence[str], before: Any) -> int:
    """Close what runs of these flows that ended before a time left open, whatever ended them.
    Return the number of task runs."""
    left = client.read_task_runs(
        flow_filter=FlowFilter(name=FlowFilterName(any_=list(flows))),
        flow_run_filter=FlowRunFilter(
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(TERMINAL_STATES))),
            end_time=FlowRunFilterEndTime.model_validate({"before_": before}),
        ),
        task_run_filter=UNFINISHED,
        limit=MOST,
    )
    close(client, left)
    close_pages(client, list({task.flow_run_id for task in left if task.flow_run_id}))
    return len(left)


def tasks_of(client: SyncPrefectClient, flow_runs: Sequence[UUID]) -> list[TaskRun]:
    """Return the task runs of flow runs that have not ended."""
    of_these = FlowRunFilter(id=FlowRunFilterId(any_=list(flow_runs)))
    return client.read_task_runs(flow_run_filter=of_these, task_run_filter=UNFINISHED, limit=MOST)


def close(client: SyncPrefectClient, tasks: Iterable[TaskRun]) -> None:
    """Make task runs Crashed. One whose process lives after all says later how it ended."""
    for task in tasks:
        client.set_task_run_state(task.id, Crashed(message=MESSAGE), force=True)


def close_pages(client: SyncPrefectClient, flow_runs: Sequence[UUID]) -> None:
    """Let pages that say that a run is going on say that it crashed."""
    for page in pages_of(client, flow_runs):
        if str(page.data).startswith(RUNNING):
            text = CRASHED + str(page.data).removeprefix(RUNNING)
            client.update_artifact(page.id, ArtifactUpdate(data=text))


def pages_of(client: SyncPrefectClient, flow_runs: Sequence[UUID]) -> list[Artifact]:
    """Return the pages of flow runs."""
    if not flow_runs:
        return []
    wanted = ArtifactFilter(
        flow_run_id=ArtifactFilterFlowRunId(any_=list(flow_runs)),
        key=ArtifactFilterKey(any_=[KEY]),
    )
    return client.read_artifacts(artifact_filter=wanted)
