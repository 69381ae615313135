"""Ends the flow of a cancelled run that no worker ends: one of a command, or one whose worker is
gone. Prefect calls it Cancelled all the same, while it works on."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from contextvars import copy_context
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.runtime import flow_run

from flows.deployments.patience import without_retries

LOOK_SECONDS = 30.0
"""Interval of looks at the run's state: that of heartbeats. A worker ends a run much sooner."""
CANCELLED = (StateType.CANCELLING, StateType.CANCELLED)


@contextlib.contextmanager
def ended_when_cancelled() -> Iterator[None]:
    """Inside the block, interrupt the main thread as Ctrl-C does once the current flow run was
    cancelled. A run that is still Cancelling at the next look has no worker that would end it."""
    if not flow_run.id:
        yield
        return
    run, left = UUID(str(flow_run.id)), threading.Event()

    def watch() -> None:
        before = None
        while not left.wait(LOOK_SECONDS):
            state = state_of(run)
            if state == StateType.CANCELLED or (state in CANCELLED and before in CANCELLED):
                if (main := threading.main_thread().ident) and not left.is_set():
                    signal.pthread_kill(main, signal.SIGINT)
                return
            before = state

    thread = threading.Thread(target=copy_context().run, args=(watch,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        left.set()


def state_of(run: UUID) -> StateType | None:
    """Return the type of a flow run's state; None if the server does not answer."""
    with (
        contextlib.suppress(Exception),
        without_retries(),
        get_client(sync_client=True) as client,
    ):
        state = client.read_flow_run(run).state
        return state.type if state else None
    return None
