"""The caption run as a Prefect flow: what it takes, what it shows, and that its bytes are those of
the plain command."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn
from uuid import UUID, uuid4

import httpx
import pytest
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL

import flows.interfaces.prefect.commands
import flows.interfaces.prefect.runs
import penstock_demo
from artifacts.errors import CannotFit, EnvironmentFault, Interrupted, Killed
from flows.commands.shared.arguments import recorded_run
from flows.core.console.display import Display
from flows.core.options.commands import CaptionConfig
from flows.interfaces.prefect import view as prefect_view
from flows.interfaces.prefect.commands import observed
from flows.interfaces.prefect.runs import INTERRUPTED, Caller, ended_by, warn_of_demo
from flows.interfaces.prefect.view import Progress, RunLog
from flows.outputs.folder.trust import command_in
from scripts.run.stage_processes import descendants, stage_of
from tests.support.commands import completed
from tests.support.pipeline import PENSTOCK, ROOT, wait_gone

CLIPS = [str(penstock_demo.CLIPS / name) for name in ("clip-01.mp4", "clip-02.mp4")]


def test_a_bar_goes_on_when_the_server_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    request = threading.Event()
    drawn: list[float] = []

    def refuse(percent: float, **_: object) -> None:
        request.set()
        raise ConnectionError("gone")

    def draw(percent: float, **_: object) -> UUID:
        drawn.append(percent)
        return uuid4()

    monkeypatch.setattr(prefect_view, "create_progress_artifact", refuse)
    progress = Progress("encode")
    progress.report(0, 0)
    progress.report(1, 4)
    assert request.wait(30)
    monkeypatch.setattr(prefect_view, "create_progress_artifact", draw)
    progress.report(4, 4)
    progress.close()
    assert drawn == [100.0]


def test_a_server_that_never_answers_holds_up_no_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    request, answer = threading.Event(), threading.Event()

    def hang(percent: float, **_: object) -> UUID:
        request.set()
        answer.wait()
        return uuid4()

    monkeypatch.setattr(prefect_view, "create_progress_artifact", hang)
    monkeypatch.setattr(prefect_view, "update_progress_artifact", lambda *_: None)
    monkeypatch.setattr(prefect_view, "LAST_STEP_SECONDS", 0.1)
    progress = Progress("encode")
    progress.report(1, 4)
    assert request.wait(30)
    progress.report(2, 4)
    progress.close()
    answer.set()
    monkeypatch.setattr(prefect_view, "LAST_STEP_SECONDS", 30)
    progress.close()  # so that the thread ends before what it stands on is there again


def test_an_end_tells_whether_it_is_to_be_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flows.interfaces.prefect.runs, "await_server", lambda: True)
    request = Interrupted("stopped")
    request.__cause__ = KeyboardInterrupt()
    errors = (request, Killed("killed"), CannotFit("too big"))
    states = [ended_by(error, "page") for error in errors]
    assert [state.name for state in states] == ["Cancelled", INTERRUPTED, "Failed"]
    assert [state.type.value for state in states] == ["CANCELLED", "FAILED", "FAILED"]


@pytest.mark.parametrize("scheduled", [True, False])
@pytest.mark.parametrize("source", ["demo/samples", "/data/videos"])
def test_a_scheduled_run_of_the_demos_clips_says_so_in_its_log(
    scheduled: bool, source: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = SimpleNamespace(flow_run=SimpleNamespace(auto_scheduled=scheduled))
    runs, log = flows.interfaces.prefect.runs, logging.getLogger("a flow run")
    monkeypatch.setattr(runs, "FlowRunContext", SimpleNamespace(get=lambda: context))
    monkeypatch.setattr(runs, "get_run_logger", lambda: log)
    warn_of_demo(CaptionConfig(sources=(source,)))
    warned = scheduled and source == "demo/samples"
    assert ["name your own `sources`" in each for each in caplog.messages] == [True] * warned


def test_lines_go_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "a flow run"):
        print("100 %s done", file=RunLog(logging.getLogger("a flow run")))
    assert caplog.messages == ["100 %s done"]


def command(out: Path, *more: str, sources: list[str] = CLIPS) -> list[str]:
    where = ["--out", str(out), "--store", f"{out}-store", "--format", "txt,vtt"]
    return [*PENSTOCK, "caption", *sources, "--model", "demo", *where, *more]


@pytest.fixture(scope="module")
def server() -> Iterator[None]:
    """A server, which the environment names."""
    # Not above: it imports the server, and every test run collects this file.
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120), pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_API_URL", str(PREFECT_API_URL.value()))
        yield


def run(out: Path, *more: str) -> "subprocess.CompletedProcess[str]":
    done = completed(command(out, *more), timeout=280)
    assert done.returncode == 0, done.stderr
    return done


def outputs(out: Path) -> dict[str, bytes]:
    names = ("captions.jsonl", "failures.jsonl", "clip-01.txt", "clip-02.vtt")
    return {name: (out / name).read_bytes() for name in names}


TIMED = re.compile(
    r"^(cutting frames|encoding|captioning|starting|waiting for|reading the sources|loading)\b"
)
"""In a line that depends on times: of a stage, which is not shown if it ended beside the stage
before it, and of what is slow, every ten seconds."""


@pytest.mark.slow
def test_with_prefect_the_command_makes_and_says_the_same(tmp_path: Path, server: None) -> None:
    plain_run = run(tmp_path / "plain")
    flow_run = run(tmp_path / "flow", "--prefect")
    assert outputs(tmp_path / "flow") == outputs(tmp_path / "plain")
    assert outputs(tmp_path / "flow")["captions.jsonl"].count(b"\n") == 2
    outs = [tmp_path / name for name in ("plain", "flow")]
    plain, flow = (recorded_run(command_in(out, f"{out}-store")).config for out in outs)
    assert replace(plain, out=flow.out, store=flow.store) == flow
    assert flow.format == ("txt", "vtt")
    texts = []
    for done, out in ((plain_run, tmp_path / "plain"), (flow_run, tmp_path / "flow")):
        lines = [line for line in done.stderr.splitlines() if not TIMED.search(line)]
        texts.append("\n".join([*lines, done.stdout]).replace(str(out), "OUT"))
    assert "2 captions in OUT/captions.jsonl" in texts[0]
    assert texts[0] == texts[1]


def test_a_server_that_refuses_the_login_is_said_to() -> None:
    def refuse() -> NoReturn:
        request = httpx.Request("POST", "http://127.0.0.1:4242/api/flows/")
        raise PrefectHTTPStatusError(
            "401 Unauthorized", request=request, response=httpx.Response(401, request=request)
        )

    caller = Caller(display=Display(quiet=True))
    with pytest.raises(EnvironmentFault, match=r"refuses the login\. Set PREFECT_API_AUTH_STRING"):
        observed(refuse, caller)


MANY = ("--batch-size", "1", "--chunk", "0.5")
"""Options that give a run enough to do for it to be met at work, however busy the machine is."""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_flow_ends_soon_and_goes_on_where_it_was(
    tmp_path: Path, number: signal.Signals, server: None
) -> None:
    out = tmp_path / "out"
    running = subprocess.Popen(
        command(out, "--prefect", "--json", *MANY),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert running.stdout is not None
    for line in running.stdout:
        event = json.loads(line)
        if event["event"] == "item" and event["stage"] == "encode":
            break
    stages = [pid for pid in descendants(running.pid) if stage_of(pid)]
    request = time.monotonic()
    os.killpg(running.pid, number)  # as a terminal does, or a service manager
    wait_gone(stages, 10)
    _, errors = running.communicate(timeout=60)
    assert time.monotonic() - request < 30
    assert len(stages) == 1
    assert running.returncode == 4
    assert errors.strip().splitlines()[-1].startswith("penstock: stopped")
    assert json.loads((out / "run.json").read_text())["state"] == "interrupted"
    run(out, *MANY)
    run(tmp_path / "whole", *MANY)
    assert outputs(out) == outputs(tmp_path / "whole")


UNREAD = """
import os
from prefect.logging import get_logger
from prefect.logging.configuration import setup_logging
from flows.interfaces.prefect.view import RunLog
setup_logging()
log = RunLog(get_logger("engine"))
reader, writer = os.pipe()
os.close(reader)
for stream in (1, 2):
    os.dup2(writer, stream)
log.write("nobody reads this")
log.write("nor this")
os._exit(7)
"""
AWAY = """
import sys
from prefect.logging.configuration import setup_logging
setup_logging()
from prefect._internal.concurrency import logger
from prefect.logging import get_logger
from flows.interfaces.prefect.view import quiet_console
quiet_console(lambda text: print("ours:", text, file=sys.stderr))
for _ in range(3):
    logger.error("Service %r failed with %s pending items.", "EventsWorker", 7)
get_logger("engine").error("theirs")
"""


@pytest.mark.slow
def test_a_server_that_is_gone_costs_a_command_one_line() -> None:
    done = completed([sys.executable, "-c", AWAY], check=True)
    message = "the Prefect server stopped responding: its UI shows only a part of this run"
    assert (done.stdout, done.stderr) == ("", f"ours: {message}\n")


@pytest.mark.slow
def test_lines_that_nobody_reads_any_more_end_no_thread() -> None:
    assert subprocess.run([sys.executable, "-c", UNREAD], cwd=ROOT, check=False).returncode == 7
