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
"""Seconds that a deployment's run waits to tell how it ended: whoever restarts a server needs
less."""
COMMAND_SECONDS = 30.0
"""Seconds that a command waits; it has told the person how it ended."""
FAREWELL_SECONDS = 20.0
"""Seconds that a command's process may stay after its last word, for Prefect's threads to end."""
ASK_SECONDS = 1.0


def impatient() -> contextlib.AbstractContextManager[object]:
    """Let calls of Prefect's client within be tried once."""
    return temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0})


def await_server() -> bool:
    """Wait until the server of the flow run that is going on answers; returns whether it does."""
    context = FlowRunContext.get()
    deployed = context and context.flow_run and context.flow_run.deployment_id
    deadline = time.monotonic() + (DEPLOYED_SECONDS if deployed else COMMAND_SECONDS)
    with impatient(), get_client(sync_client=True) as client:
        while client.api_healthcheck() is not None:
            if time.monotonic() > deadline:
                return False
            time.sleep(ASK_SECONDS)
    return True


def leave_within(exit_code: int, seconds: float = FAREWELL_SECONDS) -> None:
    """End this process with that code even if Prefect's threads do not; to be called last."""

    def leave() -> None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(exit_code)

    timer = threading.Timer(seconds, leave)
    timer.daemon = True
    timer.start()
