"""Ends the flow of a cancelled run that no worker ends: one of a command, or one whose worker is
gone. Prefect calls it Cancelled all the same, while it works on."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from contextvars import copy_context
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.runtime import flow_run

from flows.deployments.patience import without_retries

LOOK_SECONDS = 30.0
"""Interval of looks at the run's state: that of heartbeats. A worker ends a run much sooner."""


@contextlib.contextmanager
def ended_when_cancelled() -> Iterator[None]:
    """Inside the block, interrupt the main thread as Ctrl-C does once the current flow run was
    cancelled. A run that is Cancelling at two looks has no worker that would end it."""
    run, main, left = flow_run.id, threading.main_thread().ident, threading.Event()

    def watch() -> None:
        looks = 0  # at which it was Cancelling
        while run and main and not left.wait(LOOK_SECONDS):
            with contextlib.suppress(Exception), without_retries():  # the server may be away
                with get_client(sync_client=True) as client:
                    state = client.read_flow_run(UUID(str(run))).state
                looks += bool(state and state.is_cancelling())
                if (looks > 1 or (state and state.is_cancelled())) and not left.is_set():
                    return signal.pthread_kill(main, signal.SIGINT)

    threading.Thread(target=copy_context().run, args=(watch,), daemon=True).start()
    try:
        yield
    finally:
        left.set()
