"""scripts/run_worker.py ends the flows before the worker, whoever the worker is; a retry that comes
before the worker knows of the end ends neither the worker nor the run."""

import asyncio
import os
import signal
import subprocess
import sys
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
from tests.support.pipeline import ROOT, child_processes, wait_gone

FLOW = """
import signal, sys, time
def end(*_):
    time.sleep(0.3)  # longer than a worker takes to kill it
    print("the flow has ended", flush=True)
    sys.exit()
signal.signal(signal.SIGTERM, end)
print("the flow runs", flush=True)
time.sleep(60)
"""
WORKER = f"""
import signal, subprocess, sys, time
flow = subprocess.Popen([sys.executable, "-c", {FLOW!r}])
def end(*_):
    print("the worker ends", flush=True)
    flow.kill()
    sys.exit(7)
signal.signal(signal.SIGTERM, end)
while True:
    flow.poll()
    time.sleep(0.05)
"""
RUN = "import sys; from scripts.run_worker import run; sys.exit(run(sys.argv[1:]))"


@pytest.fixture
def running() -> Iterator["subprocess.Popen[str]"]:
    """The script, with a worker that has a flow."""
    # The tests themselves may be run under nohup.
    heard = f"import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL); {RUN}"
    process = subprocess.Popen(
        [sys.executable, "-c", heard, sys.executable, "-c", WORKER],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "the flow runs\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_flow_has_its_exit_report_before_the_worker_ends(
    running: "subprocess.Popen[str]", number: signal.Signals
) -> None:
    running.send_signal(number)
    assert running.stdout is not None
    assert running.stdout.read().splitlines() == ["the flow has ended", "the worker ends"]
    assert running.wait(30) == 0


def test_under_nohup_a_hangup_is_none() -> None:
    ignoring = f"import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); {RUN}"
    worker = "import os, signal; os.kill(os.getppid(), signal.SIGHUP); raise SystemExit(7)"
    command = [sys.executable, "-c", ignoring, sys.executable, "-c", worker]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 7


def test_a_worker_does_not_outlive_the_script(running: "subprocess.Popen[str]") -> None:
    (worker,) = child_processes(running.pid)
    flows = child_processes(worker)
    running.kill()
    wait_gone([worker], 10)
    for flow in flows:
        os.kill(flow, signal.SIGKILL)


def test_the_end_of_the_worker_is_the_end_of_the_script(running: "subprocess.Popen[str]") -> None:
    (worker,) = child_processes(running.pid)
    os.kill(worker, signal.SIGTERM)
    assert running.wait(30) == 7


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
