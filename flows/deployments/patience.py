"""Limits how long a run waits for Prefect's server. It waits only for its final state, and for no
progress bar, table or log line.

Prefect's own client retries every call for a minute, call after call. At the end of the process its
threads try each remaining event for some seconds. Together this took up to ten minutes.
"""

import contextlib
import os
import sys
import threading
import time

from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

DEPLOYED_SECONDS = 300.0
"""Longest wait of a deployment's run to report its final state. Restarting a server takes less."""
COMMAND_SECONDS = 30.0
"""The same for a command, which has already printed its result."""
FAREWELL_SECONDS = 20.0
"""Seconds that a command's process may stay after its last output, for Prefect's threads to end."""
POLL_SECONDS = 1.0


def without_retries() -> contextlib.AbstractContextManager[object]:
    """Disable retries of Prefect's client inside the block."""
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


def leave_within(exit_code: int, seconds: float = FAREWELL_SECONDS) -> None:
    """End this process with that exit code even if Prefect's threads do not; call it last."""

    def leave() -> None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(exit_code)

    timer = threading.Timer(seconds, leave)
    timer.daemon = True
    timer.start()
