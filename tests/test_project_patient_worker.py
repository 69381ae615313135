"""A retry that comes before the worker knows of the end ends neither the worker nor the run."""

import asyncio
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import anyio
import pytest
from prefect import State
from prefect.states import Crashed, Running, Scheduled
from prefect.workers.base import BaseWorker
from prefect.workers.process import ProcessWorker

from scripts.patient_worker import is_retried, make_patient

CHANGED = ("_submit_scheduled_flow_runs", "_propose_crashed_state")


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in CHANGED:
        monkeypatch.setattr(BaseWorker, name, getattr(BaseWorker, name))  # taken back afterwards
    make_patient()
    yield


async def submit_twice() -> list[Any]:
    """What becomes of a run that is asked for while the worker has a slot for it."""
    worker = ProcessWorker(work_pool_name="gpu", limit=1)
    limiter = worker._limiter = anyio.CapacityLimiter(1)
    run = SimpleNamespace(id=uuid4(), name="run")
    await limiter.acquire_on_behalf_of(run.id)
    asked: Any = [SimpleNamespace(flow_run=run)]
    return await worker._submit_scheduled_flow_runs(asked)


def test_prefect_s_own_worker_is_ended_by_it() -> None:
    """When this fails, Prefect was mended."""
    with pytest.raises(RuntimeError, match="already holding"):
        asyncio.run(submit_twice())


def test_ours_waits(patient: None) -> None:
    assert asyncio.run(submit_twice()) == []


@pytest.mark.parametrize(
    ("state", "expected"),
    [(Scheduled(), True), (Crashed(), False), (Running(), False), (None, False)],
)
def test_a_run_that_waits_to_be_started_was_retried(
    state: State[Any] | None, expected: bool
) -> None:
    class Client:
        async def read_flow_run(self, _: object) -> Any:
            return SimpleNamespace(state=state)

    assert asyncio.run(is_retried(Client(), SimpleNamespace(id=uuid4()))) is expected
