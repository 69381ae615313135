"""Closes what killed processes left open on Prefect's server, and limits the waits for that server.

A killed process leaves task runs that would stay Running for ever. The module closes them.

A run waits for the server to receive its final state, but no progress bar, page or log line.
Prefect's own client retries every call for a minute, call after call. At the end of the process its
threads try each remaining event for some seconds. Together this took up to ten minutes.
"""

import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from datetime import datetime
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowFilter, FlowRunFilter, TaskRunFilter
from prefect.client.schemas.objects import TERMINAL_STATES, StateType, TaskRun
from prefect.context import FlowRunContext
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import Crashed

DEPLOYED_SECONDS = 300.0
"""Longest wait of a deployment's run to report its final state. Restarting a server takes less."""
COMMAND_SECONDS = 30.0
"""The same for a command, which has already printed its result."""
FAREWELL_SECONDS = 20.0
"""Seconds that a command's process may stay after its last output, for Prefect's threads to end."""
POLL_SECONDS = 1.0


def without_retries() -> contextlib.AbstractContextManager[object]:
    return temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0})


def await_server() -> bool:
    """Wait until the server of the current flow run responds. Return whether it does."""
    context = FlowRunContext.get()
    deployed = context and context.flow_run and context.flow_run.deployment_id
    deadline = time.monotonic() + (DEPLOYED_SECONDS if deployed else COMMAND_SECONDS)
    with without_retries(), get_client(sync_client=True) as client:
        while client.api_healthcheck() is not None:
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_SECONDS)
    return True


def leave_within(exit_code: int) -> None:
    """End this process with that exit code even if Prefect's threads do not; call it last."""

    def leave() -> None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(exit_code)

    timer = threading.Timer(FAREWELL_SECONDS, leave)
    timer.daemon = True
    timer.start()


logger = logging.getLogger(__name__)

MESSAGE = (
    "The end of this task run was not reported: its process was killed, or the server was away"
)
MAX_TASK_RUNS = 200
"""Largest number of task runs that the server returns at once."""
UNFINISHED = TaskRunFilter.model_validate(
    {"state": {"type": {"any_": [state for state in StateType if state not in TERMINAL_STATES]}}}
)


def close_earlier_attempts() -> None:
    """Close what earlier attempts of the current flow run left open. If the server does not
    respond, log a warning; the sweep tries again."""
    context = FlowRunContext.get()
    flow_run = context.flow_run if context else None
    if flow_run is None or flow_run.run_count < 2:
        return
    try:
        with without_retries(), get_client(sync_client=True) as client:
            open_tasks = tasks_of(client, [flow_run.id])
            close(client, [t for t in open_tasks if t.flow_run_run_count < flow_run.run_count])
    except Exception as error:
        logger.warning("task runs of the previous attempt were not closed: %s", error)


def close_crashed(flow_run: UUID) -> None:
    """Close what a crashed flow run left open, if the server responds."""
    try:
        with without_retries(), get_client(sync_client=True) as client:
            state = client.read_flow_run(flow_run).state
            if state is None or not state.is_crashed():
                return  # the run has reported its end, and its tasks may be about to
            close(client, tasks_of(client, [flow_run]))
    except Exception as error:
        logger.warning("task runs of a crashed run were not closed: %s", error)


def close_ended(client: SyncPrefectClient, flows: Sequence[str], before: datetime) -> int:
    """Close what runs of these flows left open that ended before a given time. Return the number of
    task runs."""
    task_runs = client.read_task_runs(
        flow_filter=FlowFilter.model_validate({"name": {"any_": flows}}),
        flow_run_filter=FlowRunFilter.model_validate(
            {"state": {"type": {"any_": TERMINAL_STATES}}, "end_time": {"before_": before}}
        ),
        task_run_filter=UNFINISHED,
        limit=MAX_TASK_RUNS,
    )
    close(client, task_runs)
    return len(task_runs)


def tasks_of(client: SyncPrefectClient, flow_runs: Sequence[UUID]) -> list[TaskRun]:
    of_these = FlowRunFilter.model_validate({"id": {"any_": flow_runs}})
    return client.read_task_runs(
        flow_run_filter=of_these, task_run_filter=UNFINISHED, limit=MAX_TASK_RUNS
    )


def close(client: SyncPrefectClient, tasks: Iterable[TaskRun]) -> None:
    """Set task runs to Crashed. A process that is alive after all overrides that later."""
    for task in tasks:
        client.set_task_run_state(task.id, Crashed(message=MESSAGE), force=True)
