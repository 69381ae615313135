"""`prefect`, whose worker bears a retry that comes early; run by scripts/run/run_worker.py.

A worker hears some seconds late that a run's process has died. Who has retried the run by then
would end the worker, which cannot take the run's slot twice; or the run, which it says has crashed.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

from prefect.workers.base import BaseWorker

from flows.interfaces.prefect.crashed import close_crashed


def without_held(worker: Any, requests: Sequence[Any]) -> list[Any]:
    """What of the runs that are to be started has no slot of the worker's yet; the others are asked
    for again in a few seconds."""
    limiter = worker._limiter
    held = limiter.statistics().borrowers if limiter else ()
    return [entry for entry in requests if entry.flow_run.id not in held]


async def is_retried(client: Any, run: Any) -> bool:
    """Whether a run is to be started again, as far as the server tells."""
    try:
        found = await client.read_flow_run(run.id)
    except Exception:  # whatever it is, Prefect will meet it as well, and tell
        return False
    return bool(found.state and found.state.is_scheduled())


def make_patient() -> None:
    """Change Prefect in this process."""
    submit = BaseWorker._submit_scheduled_flow_runs
    crash = BaseWorker._propose_crashed_state

    async def submit_patiently(self: Any, flow_run_response: list[Any]) -> list[Any]:
        return await submit(self, without_held(self, flow_run_response))

    async def crash_unless_retried(
        self: Any, flow_run: Any, message: str, client: Any = None
    ) -> None:
        if not await is_retried(client or self.client, flow_run):
            await crash(self, flow_run, message, client)
            await asyncio.to_thread(close_crashed, flow_run.id)

    BaseWorker._submit_scheduled_flow_runs = submit_patiently  # type: ignore[method-assign]
    BaseWorker._propose_crashed_state = crash_unless_retried  # type: ignore[method-assign]


if __name__ == "__main__":
    from prefect.cli import app

    make_patient()
    app()
