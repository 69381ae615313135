"""What a killed flow process leaves on a real Prefect server: no task that says Running for good,
and one page of its run."""

import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from prefect import State, flow, task
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import TaskRun
from prefect.settings import PREFECT_API_URL
from prefect.states import Completed, Crashed, Pending, Running

import penstock_demo
from flows.deployments import crashed
from flows.deployments.caption import caption_videos
from flows.deployments.crashed import close_crashed, close_earlier_attempts, close_ended, pages_of
from tests.support.pipeline import ROOT, read_lines

ATTEMPT = """
import sys
from prefect.client.orchestration import get_client
from prefect.flow_engine import run_flow
from flows.deployments.caption import caption_videos

with get_client(sync_client=True) as client:
    run = client.read_flow_run(sys.argv[1])
config = caption_videos.validate_parameters(run.parameters)
run_flow(caption_videos, flow_run=run, parameters=config, return_type="state")
"""
"""One attempt of a flow run, in a process of its own, as a worker starts it."""
PLENTY = {"batch_size": 1, "chunk": 0.5}
"""Options that give a run enough to do for it to be met at work."""


@pytest.fixture(scope="module")
def client() -> Iterator[SyncPrefectClient]:
    # Not above: it imports the server, and every test run collects this file.
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120), get_client(sync_client=True) as made:
        yield made


def task_runs(client: SyncPrefectClient, run: UUID) -> list[TaskRun]:
    return client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run])))


def attempt(run: UUID) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-c", ATTEMPT, str(run)],
        cwd=ROOT,
        env={**os.environ, "PREFECT_API_URL": str(PREFECT_API_URL.value())},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def await_running(client: SyncPrefectClient, run: UUID, name: str, process: Any) -> None:
    """Wait until the server has heard that a stage's task is running."""
    deadline = time.monotonic() + 300
    while not any(t.name == name and t.state_name == "Running" for t in task_runs(client, run)):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_after_a_kill_and_another_attempt_no_task_is_running_and_the_run_has_one_page(
    client: SyncPrefectClient, tmp_path: Path
) -> None:
    where = {"out": str(tmp_path / "out"), "store": str(tmp_path / "store")}
    config = {"sources": [str(penstock_demo.CLIPS)], "model": "demo", **where, **PLENTY}
    run = client.create_flow_run(caption_videos, parameters={"config": config}, state=Pending()).id
    killed = attempt(run)
    await_running(client, run, "decode", killed)
    killed.kill()
    killed.wait()
    (page,) = pages_of(client, [run])
    assert "12 files, 0 failed" in str(page.data)
    client.set_flow_run_state(run, Crashed(), force=True)  # as the worker does
    client.set_flow_run_state(run, Pending(), force=True)  # as somebody who retries it, does

    assert attempt(run).wait(600) == 0
    state = client.read_flow_run(run).state
    assert state is not None and state.is_completed()
    deadline = time.monotonic() + 60  # the server hears of the last task's end a little later
    while unended(client, run) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert unended(client, run) == []
    decode = {t.state_name for t in task_runs(client, run) if t.name == "decode"}
    assert decode == {"Crashed", "Completed"}
    (page,) = pages_of(client, [run])
    count = len(read_lines(tmp_path / "out" / "captions.jsonl"))
    assert str(page.data).startswith("**done**") and f"{count} captions written" in str(page.data)


def unended(client: SyncPrefectClient, run: UUID) -> list[str]:
    return [t.name for t in task_runs(client, run) if t.state is None or not t.state.is_final()]


@task
def stage() -> None: ...


@flow(name="a-flow")
def a_flow() -> None: ...


@flow(name="another-flow")
def another_flow() -> None: ...


def left_open(client: SyncPrefectClient, of: Any, state: "State[Any]") -> UUID:
    """A flow run that is in a state, while its task is Running and its page says so."""
    run = client.create_flow_run(of, state=Running()).id
    client.create_task_run(stage, flow_run_id=run, dynamic_key="1", state=Running())
    client.create_artifact(
        ArtifactCreate(key=crashed.KEY, type="markdown", data="**running**\n\nx", flow_run_id=run)
    )
    client.set_flow_run_state(run, state, force=True)
    return run


def seen(client: SyncPrefectClient, run: UUID) -> tuple[str, str]:
    """What its task and its page say."""
    ((one,), (page,)) = (task_runs(client, run), pages_of(client, [run]))
    return str(one.state_name), str(page.data).split("\n")[0]


OPEN = ("Running", "**running**")
CLOSED = ("Crashed", "**crashed**")


@pytest.mark.slow
def test_a_run_that_crashed_is_closed_at_once_and_no_other(client: SyncPrefectClient) -> None:
    states: list[State[Any]] = [Crashed(), Running(), Completed()]
    runs = [left_open(client, a_flow, state) for state in states]
    for run in runs:
        close_crashed(run)
    assert [seen(client, run) for run in runs] == [CLOSED, OPEN, OPEN]
    (page,) = pages_of(client, runs[:1])
    assert str(page.data).endswith("\n\nx") and "What is finished stays done" in str(page.data)


@pytest.mark.slow
def test_the_sweep_closes_what_ended_runs_of_its_flows_left_open(client: SyncPrefectClient) -> None:
    states: list[State[Any]] = [Crashed(), Completed()]
    ended = [left_open(client, a_flow, state) for state in states]
    others = [left_open(client, a_flow, Running()), left_open(client, another_flow, Crashed())]
    now = datetime.now(UTC)
    assert close_ended(client, ["a-flow"], now - timedelta(minutes=5)) == 0
    assert {seen(client, run) for run in [*ended, *others]} == {OPEN}
    assert close_ended(client, ["a-flow"], now + timedelta(minutes=5)) >= len(ended)
    assert {seen(client, run) for run in ended} == {CLOSED}
    assert {seen(client, run) for run in others} == {OPEN}


def test_a_server_that_does_not_answer_costs_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(**_: object) -> None:
        raise ConnectionError("gone")

    context = SimpleNamespace(flow_run=SimpleNamespace(id=UUID(int=1), run_count=2))
    monkeypatch.setattr(crashed, "get_client", refuse)
    monkeypatch.setattr("prefect.context.FlowRunContext.get", lambda: context)
    with caplog.at_level(logging.WARNING):
        close_earlier_attempts()
    assert len(caplog.messages) == 1 and caplog.messages[0].endswith("gone")
    context.flow_run.run_count = 1
    close_earlier_attempts()  # which asks no server: there was no attempt before
    assert len(caplog.messages) == 1
