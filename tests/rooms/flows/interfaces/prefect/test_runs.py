"""Flow runs on a real Prefect server: the states that they end in, the tables and pages that they
leave, and what is closed of one whose process was killed."""

import json
import logging
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect import State, flow, task
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.client.schemas.objects import StateType, TaskRun
from prefect.flow_engine import run_flow_sync
from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL, PREFECT_API_URL
from prefect.states import Cancelled, Cancelling, Completed, Crashed, Pending, Running

import penstock_demo
from artifacts.errors import UsageError
from artifacts.index.manifest import read_manifest
from flows.commands.export.options import ExportConfig
from flows.core.options.commands import CaptionConfig
from flows.core.options.vectors import EmbedConfig, IndexConfig, LabelConfig
from flows.interfaces.cli.main import main
from flows.interfaces.prefect.commands import (
    caption_videos,
    embed_media,
    export_model,
    index_folder,
    label_images,
)
from flows.interfaces.prefect.crashed import close_crashed, close_ended
from flows.interfaces.prefect.runs import MAX_LETTERS
from flows.outputs.record.run_read import load_record
from stages.export.parity import PARITY
from tests.support.builders.clip import save_clip
from tests.support.embedding import SIZES, embed, vectors, write_images
from tests.support.pipeline import ROOT

CLIPS = [str(penstock_demo.CLIPS / name) for name in ("clip-01.mp4", "clip-02.mp4")]
SECRET = "not-to-be-told-4711"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[None]:
    # Not above: it imports the server, and every test run collects this file.
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture
def images(tmp_path: Path) -> tuple[Path, Path]:
    """Six pictures, and a model for them."""
    (tmp_path / "pictures").mkdir()
    return write_images(tmp_path / "pictures"), save_clip(tmp_path / "clip")


def run_flow(flow: Any, config: Any) -> tuple[Any, dict[str, Any]]:
    """The state that a flow run ends in, and what the artifacts hold that it leaves."""
    state = flow(config, return_state=True)
    run = state.state_details.flow_run_id
    with get_client(sync_client=True) as client:
        mine = [each for each in client.read_artifacts() if each.flow_run_id == run]
    return state, {str(artifact.key): artifact.data for artifact in mine}


def keys(*names: str) -> set[str]:
    return {f"penstock-{name}" for name in names}


def caption(tmp_path: Path, sources: list[str]) -> tuple[Any, dict[str, Any]]:
    out = str(tmp_path / "out")
    config = CaptionConfig(sources=tuple(sources), model="demo", out=out, batch_size=1)
    return run_flow(caption_videos, config)


def test_a_flow_with_a_bad_file_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "PREFECT_SERVER_API_AUTH_STRING", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, SECRET)
    (bad := tmp_path / "<b>bad|\n.mp4").write_text("no video")
    state, artifacts = caption(tmp_path, [CLIPS[0], str(bad), f"https://me:{SECRET}@host/a.mp4"])
    assert state.is_completed()
    assert "2 of 3 files failed" in state.message
    assert set(artifacts) == keys("frames", "encode", "decode", "captions")
    assert artifacts["penstock-decode"] == 100
    page = str(artifacts["penstock-captions"])
    assert "2 of 3 files failed" in page.splitlines()[0]
    assert "- https://host/a.mp4: " in page and r"- \<b>bad|?.mp4: " in page
    assert f"HTML report: penstock report {tmp_path / 'out'}\n" in page
    with get_client(sync_client=True) as client:
        name = client.read_flow_run(state.state_details.flow_run_id).name
    assert name.endswith(f"1 more into {tmp_path / 'out'}"[-MAX_LETTERS:]), name
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["command"] is None  # an address has a password
    assert record["prefect"]["id"] == str(state.state_details.flow_run_id)
    assert SECRET not in page + state.message
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path != bad]
    assert [path for path in written if SECRET.encode() in path.read_bytes()] == []


@pytest.mark.logs_errors
def test_a_flow_captioning_nothing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state, artifacts = caption(tmp_path, [str(tmp_path / "missing.mp4")])
    assert state.is_failed()
    assert state.message.startswith("nothing to caption")
    assert "\n" not in state.message
    assert "missing.mp4" in str(artifacts["penstock-captions"])
    with pytest.raises(UsageError, match="nothing to caption"):
        state.result()
    (tmp_path / "bad.mp4").write_text("no video")
    state, _ = caption(tmp_path, [str(tmp_path / "bad.mp4")])
    assert state.is_failed() and "failures.jsonl" in state.message
    monkeypatch.setenv("PENSTOCK_OUT_ROOT", str(tmp_path / "else"))
    state, _ = caption(tmp_path, CLIPS)
    assert state.is_failed() and "PENSTOCK_OUT_ROOT" in state.message


@pytest.mark.logs_errors
def test_a_flow_that_an_unknown_error_ends_does_not_say_that_it_is_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*_: object, **__: object) -> None:
        raise RuntimeError("something nobody thought of")

    monkeypatch.setattr("flows.execution.pipeline_runner.write_outputs", wrong)
    state, _ = caption(tmp_path, CLIPS)
    assert state.is_failed()
    assert load_record(tmp_path / "out").state == "failed"


def test_a_flow_makes_vectors_of_a_command_once(images: tuple[Path, Path], tmp_path: Path) -> None:
    sources, model = images
    assert embed(sources, model, tmp_path / "plain", "--quiet") == 0
    (sources / "bad.png").write_text("no picture")
    where: Any = {name: str(tmp_path / "flow" / name) for name in ("out", "store")}
    config = EmbedConfig(sources=(str(sources),), model=str(model), **where)
    state, artifacts = run_flow(embed_media, config)
    assert state.is_completed() and f"{len(SIZES)} vectors" in state.message
    assert "1 of 7 files failed" in state.message
    assert vectors(tmp_path / "flow").tobytes() == vectors(tmp_path / "plain").tobytes()
    assert set(artifacts) == keys("frames", "embed", "embeddings")
    assert artifacts["penstock-embed"] == 100
    assert "- bad.png: " in artifacts["penstock-embeddings"]

    (sources / "bad.png").unlink()
    state, artifacts = run_flow(embed_media, config)
    assert state.is_completed() and "penstock-embed" not in artifacts
    assert "- files: 6\n- vectors: 6\n" in artifacts["penstock-embeddings"]


def test_flows_label_and_index_as_commands_do(images: tuple[Path, Path], tmp_path: Path) -> None:
    sources, model = images
    (tmp_path / "templates.txt").write_text("{} in a photo\n")
    requests = {"labels": "cat,sky,green", "templates": str(tmp_path / "templates.txt")}
    plain, flow = tmp_path / "plain", tmp_path / "flow"
    where = ["--store", str(plain / "store"), "--out", str(plain / "out"), "--quiet"]
    where += [option for name, value in requests.items() for option in (f"--{name}", value)]
    assert main(["label", str(sources), "--model", str(model), *where]) == 0

    place = {"sources": (str(sources),), "model": str(model), "store": str(flow / "store")}
    config = LabelConfig(**place, **requests, out=str(flow / "out"))  # type: ignore[arg-type]
    state, artifacts = run_flow(label_images, config)
    assert state.is_completed() and "of 6 given" in state.message
    for name in ("labels.jsonl", "label_report.json"):
        assert (flow / "out" / name).read_bytes() == (plain / "out" / name).read_bytes(), name
    assert set(artifacts) == keys("frames", "embed", "embed-texts", "labels")
    assert "- files: 6\n- pictures: 6\n" in artifacts["penstock-labels"]

    indexing = IndexConfig(**place, out=str(flow / "index"))  # type: ignore[arg-type]
    state, artifacts = run_flow(index_folder, indexing)
    assert state.is_completed() and "6 of them new" in state.message
    assert read_manifest(flow / "index").live_rows == len(SIZES)
    lines = artifacts["penstock-index"].splitlines()
    assert {"- rows: 6", "- new: 6", f"- folder: {flow / 'index'}"} <= {*lines}
    assert "penstock-embed" not in artifacts  # what was labelled is embedded
    state, artifacts = run_flow(index_folder, indexing)
    assert state.is_completed() and "0 of them new" in state.message


def test_a_flow_exports_what_passes_and_fails_with_the_figures_of_what_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = ExportConfig(model="demo", to="nf4", out=str(tmp_path / "good"), samples=12)
    state, artifacts = run_flow(export_model, good)
    assert state.is_completed(), state.message
    assert "% of captions the same" in state.message
    assert (tmp_path / "good" / "config.json").exists()
    assert json.loads((tmp_path / "good" / PARITY).read_text())["passed"]
    assert set(artifacts) == keys("frames", "encode", "decode", "export", "judge", "checkpoint")
    lines = artifacts["penstock-checkpoint"].splitlines()
    assert {"- taken: True", "- text.captions: 12"} <= {*lines}
    for name in ("native", "exported"):
        record = load_record(tmp_path / "good" / "parity" / name)
        assert record.state == "done" and record.prefect

    state, artifacts = run_flow(export_model, good)
    assert state.is_completed() and "already exported" in state.message
    assert "penstock-judge" not in artifacts

    few = replace(good, out=str(tmp_path / "few"), samples=2)
    state, artifacts = run_flow(export_model, few)
    assert state.is_failed() and state.name == "Failed"  # the sweep leaves it alone
    assert "frames (≥ 64)" in state.message and "\n" not in state.message
    assert str(tmp_path / "few" / "rejected") in state.message
    figures = artifacts["penstock-checkpoint"]
    assert "frames (≥ 64)" in figures.splitlines()[0] and "- taken: False\n" in figures
    assert not (tmp_path / "few" / "config.json").exists()

    monkeypatch.setenv("PENSTOCK_OUT_ROOT", str(tmp_path / "else"))
    state, _ = run_flow(export_model, few)
    assert state.is_failed() and "PENSTOCK_OUT_ROOT" in state.message


ATTEMPT = """
import contextlib
import sys
from prefect.client.orchestration import get_client
from prefect.flow_engine import run_flow
from prefect.logging.loggers import flow_run_logger
from artifacts.errors import PenstockError
from flows.interfaces.prefect import runs
from flows.interfaces.prefect.commands import caption_videos

runs.LOOK_SECONDS = 1.0

with get_client(sync_client=True) as client:
    run = client.read_flow_run(sys.argv[1])
config = caption_videos.validate_parameters(run.parameters)
with contextlib.suppress(PenstockError):
    run_flow(caption_videos, flow_run=run, parameters=config, error_logger=flow_run_logger(run))
"""
"""One attempt of a flow run, in a process of its own, as a worker starts it."""


@pytest.fixture(scope="module")
def client() -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as made:
        yield made


def task_runs(client: SyncPrefectClient, run: UUID) -> list[TaskRun]:
    return client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run])))


def logged(client: SyncPrefectClient, run: UUID) -> list[tuple[int, str]]:
    """Level and text of what its page shows."""
    of_run = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run]))
    return [(log.level, log.message) for log in client.read_logs(of_run)]


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


@pytest.mark.timeout(600)
@pytest.mark.parametrize("state", [Cancelling(), Cancelled()], ids=lambda state: state.name)
def test_a_cancelled_run_that_no_worker_ends_ends_itself(
    client: SyncPrefectClient, tmp_path: Path, state: State[Any]
) -> None:
    plenty = {"out": str(tmp_path / "out"), "batch_size": 1, "chunk": 0.5}
    config = {"sources": [str(penstock_demo.CLIPS)], "model": "demo", **plenty}
    run = client.create_flow_run(caption_videos, parameters={"config": config}, state=Pending()).id
    process = attempt(run)
    await_running(client, run, "encode", process)
    client.set_flow_run_state(run, state, force=True)
    assert process.wait(300) == 0
    assert load_record(tmp_path / "out").state == "interrupted"
    end = client.read_flow_run(run).state
    assert end is not None and end.name == "Cancelled"
    logs = logged(client, run)
    assert logs and all(level <= logging.INFO and text.strip() for level, text in logs)


@pytest.mark.timeout(300)
def test_an_error_is_logged_in_one_line(client: SyncPrefectClient, tmp_path: Path) -> None:
    config = {"sources": [str(tmp_path / "none")], "model": "demo", "out": str(tmp_path / "out")}
    run = client.create_flow_run(caption_videos, parameters={"config": config}, state=Pending()).id
    assert attempt(run).wait(200) == 0
    (reported,) = [text for _, text in logged(client, run) if "nothing to caption" in text]
    assert reported.startswith("Finished in state Failed(") and "\n" not in reported


@task
def stage() -> None: ...


@flow(name="a-flow")
def a_flow() -> None: ...


another_flow = a_flow.with_options(name="another-flow")


def left_open(client: SyncPrefectClient, of: Any, state: "State[Any]") -> UUID:
    """A flow run that is in a state, while its task is Running."""
    run = client.create_flow_run(of, state=Running()).id
    client.create_task_run(stage, flow_run_id=run, dynamic_key="1", state=Running())
    client.set_flow_run_state(run, state, force=True)
    return run


def seen(client: SyncPrefectClient, run: UUID) -> str:
    """The state of its task."""
    (one,) = task_runs(client, run)
    return str(one.state_name)


OPEN, CLOSED = "Running", "Crashed"


def test_a_run_that_crashed_is_closed_at_once_and_no_other(client: SyncPrefectClient) -> None:
    states: list[State[Any]] = [Crashed(), Running(), Completed()]
    runs = [left_open(client, a_flow, state) for state in states]
    for run in runs:
        close_crashed(run)
    assert [seen(client, run) for run in runs] == [CLOSED, OPEN, OPEN]


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


def scheduled(client: SyncPrefectClient, config: dict[str, Any], *states: State) -> Any:
    """A run as a schedule makes it, of a deployment with this configuration. Earlier runs of the
    deployment have the `states`."""
    flow_id = client.create_flow(caption_videos)
    deployment = client.create_deployment(flow_id, f"nightly {time.time_ns()}")
    parameters = {"config": config}
    for state in states:
        client.create_flow_run_from_deployment(deployment, parameters=parameters, state=state)
    run = client.create_flow_run_from_deployment(deployment, parameters=parameters)
    # Only the server's scheduler says so, and it makes runs ahead of their time.
    path = str(PREFECT_API_DATABASE_CONNECTION_URL.value()).partition(":///")[2]
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE flow_run SET auto_scheduled = 1 WHERE id = ?", [str(run.id)])
    return client.read_flow_run(run.id)


@pytest.mark.parametrize(
    ("states", "name"),
    [((Running(),), "Skipped"), ((Crashed(), Completed()), "Completed"), ((), "Completed")],
)
def test_a_scheduled_run_that_would_overlap_itself_is_skipped(
    tmp_path: Path, images: tuple[Path, Path], states: tuple[State, ...], name: str
) -> None:
    fresh = {"sources": [str(images[0])], "model": str(images[1]), "min_age": "1h"}
    config = {**fresh, "out": str(tmp_path / "out"), "store": str(tmp_path / "store")}
    with get_client(sync_client=True) as client:
        run = scheduled(client, config, *states)
    assert run.auto_scheduled
    state: Any = run_flow_sync(
        caption_videos, flow_run=run, parameters=run.parameters, return_type="state"
    )
    assert (state.type, state.name) == (StateType.COMPLETED, name)
    line = "an earlier run of this deployment" if name == "Skipped" else "nothing to do yet"
    assert line in state.message
    assert not (tmp_path / "out").exists()
