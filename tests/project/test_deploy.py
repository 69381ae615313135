"""What is deployed, documented and handed to systemd fits together; `make server` and `make worker`
say at once what they are about; a worker that is ended ends its flows first."""

import asyncio
import contextlib
import importlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import anyio
import pytest
import yaml
from prefect import Flow, State
from prefect.client.schemas.objects import DeploymentSchedule
from prefect.client.schemas.schedules import CronSchedule
from prefect.settings import PREFECT_API_URL, Settings, temporary_settings
from prefect.states import Crashed, Running, Scheduled
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import ValidationError, validate
from prefect.workers.base import BaseWorker
from prefect.workers.process import ProcessWorker

from artifacts.errors import UsageError
from flows.commands.shared.parser import parse
from flows.commands.watch.watch_command import watched
from flows.core.machine.server_health import answers
from flows.interfaces.prefect.server import client_settings, is_own_server
from scripts.run import deploy_all, login, prepare_pool
from scripts.run.patient_worker import is_retried, make_patient
from scripts.run.prefect_stack import free_port
from scripts.run.prepare_pool import BEAT, BEAT_SECONDS, FLOWS, POOL, crash_automation
from scripts.run.stage_processes import child_processes
from tests.support.commands import completed
from tests.support.loopback import QuietHandler, served
from tests.support.pipeline import wait_gone
from tests.support.terminals import Dialogue

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "docs" / "deploy"
UNITS = sorted(DEPLOY.glob("*r.service"))
"""Those that a user runs from a clone; the other one is the system's, and of an installation."""
DEPLOYMENTS: list[dict[str, Any]] = yaml.safe_load((ROOT / "prefect.yaml").read_text())[
    "deployments"
]


def flow_of(deployment: dict[str, Any]) -> "Flow[..., Any]":
    path, name = deployment["entrypoint"].split(":")
    found = getattr(importlib.import_module(path.removesuffix(".py").replace("/", ".")), name)
    assert isinstance(found, Flow)
    return found


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda d: d["name"])
def test_what_is_deployed_can_be_run_and_is_watched(deployment: dict[str, Any]) -> None:
    flow = flow_of(deployment)
    flow.validate_parameters(deployment.get("parameters", {}))
    assert deployment["work_pool"]["name"] == POOL
    env = deployment["work_pool"]["job_variables"]["env"]
    # Whatever locale its worker has, a run reads names of files as UTF-8.
    assert env == {BEAT: f"{BEAT_SECONDS}", "PYTHONUTF8": "1"}
    assert flow.name in FLOWS


def sent_schema(deployment: dict[str, Any]) -> dict[str, Any]:
    """What `prefect deploy` tells the server of a flow's parameters."""
    return parameter_schema(flow_of(deployment)).model_dump(exclude_unset=True)


@pytest.mark.in_turn
@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda d: d["entrypoint"])
def test_a_misplaced_or_missing_parameter_is_refused_before_a_run(
    deployment: dict[str, Any],
) -> None:
    schema, good = sent_schema(deployment), deployment.get("parameters", {})
    validate(good, schema, raise_on_error=True)
    for more in ({"fps": 2}, {"dryrun": True}, {"sources": ["demo/samples"]}):
        with pytest.raises(ValidationError, match=f"'{next(iter(more))}' was unexpected"):
            validate({**good, **more}, schema, raise_on_error=True)
    expected = [name for name in good if name in ("config", "caption", "max_size")]
    assert schema.get("required", []) == expected
    for name in schema.get("required", []):
        with pytest.raises(ValidationError, match=f"'{name}' is a required property"):
            validate({n: good[n] for n in good if n != name}, schema, raise_on_error=True)


@pytest.mark.in_turn
@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda d: d["entrypoint"])
def test_the_server_is_given_no_value_that_it_cannot_write_back(deployment: dict[str, Any]) -> None:
    """It would answer 500 for every list of runs from then on."""
    schema = sent_schema(deployment)
    fields = dict(schema["properties"])
    for kind in schema.get("definitions", {}).values():
        fields |= kind["properties"]
    odd = (2**63, 10**30, -(10**30), float("inf"), "a\0b", "\udcff")
    values = [
        *odd,
        *([one] for one in odd),
        *({"a": one} for one in odd),
        *({t: "a"} for t in odd[-2:]),
    ]
    taken = [
        (name, value)
        for name, field in fields.items()
        for value in values
        if not validate({"x": value}, {**schema, "properties": {"x": field}, "required": []})
    ]
    assert taken == []


def test_make_and_systemd_run_the_same_commands() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert [unit.stem for unit in UNITS] == ["penstock-server", "penstock-worker"]
    for unit in UNITS:
        command = re.search(r"^ExecStart=%h/penstock/(\S+)$", unit.read_text(), re.MULTILINE)
        assert command
        assert os.access(ROOT / command[1], os.X_OK)
        name = unit.stem.removeprefix("penstock-")
        setup = {"server": "setup", "worker": "$(if $(RAY),setup-dev,setup)"}[name]
        assert f"{name}: {setup}\n\t@exec {command[1]}\n" in makefile


def test_the_unit_of_a_watch_holds_a_command_that_may_be_watched() -> None:
    unit = (DEPLOY / "penstock-watch.service").read_text()
    command = re.search(r"^ExecStart=%h/penstock/.venv/bin/penstock (.+)$", unit, re.MULTILINE)
    assert command
    given = parse(shlex.split(command[1]))
    assert (given.command, given.every, given.min_age) == ("watch", 60, 120)
    name, config = watched(given.run[1:])
    assert (name, config.sources, config.recursive) == ("caption", ("/data/videos",), True)


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")
def test_systemd_understands_the_units(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "scripts", tmp_path / "penstock" / "scripts")
    done = completed(
        ["systemd-analyze", "--user", "verify", *UNITS],
        env={**os.environ, "HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)},
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_run_is_given_up_after_several_heartbeats_and_only_if_it_is_ours() -> None:
    automation = crash_automation(30)
    trigger = automation.trigger
    assert trigger.within.total_seconds() == 120  # type: ignore[union-attr]
    assert trigger.match_related.root["prefect.resource.name"] == list(FLOWS)  # type: ignore[union-attr]
    ends = {"Completed", "Failed", "Cancelled", "Crashed", "Interrupted", "Skipped"}
    assert trigger.expect == {f"prefect.flow-run.{name}" for name in {*ends, "heartbeat"}}  # type: ignore[union-attr]
    assert automation.enabled


@pytest.mark.parametrize(
    ("given", "allowed"),
    [
        ({}, "http://127.0.0.1:4200,http://localhost:4200"),
        ({"PREFECT_SERVER_API_PORT": "81"}, "http://127.0.0.1:81,http://localhost:81"),
        (
            {"PREFECT_SERVER_API_HOST": "box.example"},
            "http://127.0.0.1:4200,http://localhost:4200,http://box.example:4200",
        ),
        (
            {"PREFECT_SERVER_API_HOST": "::1"},
            "http://127.0.0.1:4200,http://localhost:4200,http://[::1]:4200",
        ),
        ({"PREFECT_SERVER_CORS_ALLOWED_ORIGINS": "http://mine"}, "http://mine"),
        ({"PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS": "http://mine"}, "http://mine"),
    ],
    ids=["none", "port", "host", "IPv6", "pages", "pages by their long name"],
)
def test_the_server_s_own_pages_alone_may_read_what_it_answers(
    given: dict[str, str], allowed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_SERVER_")}
    done = completed(
        ["sh", "-euc", ". scripts/run/prefect_variables; env -0"], env={**kept, **given}, check=True
    )
    for name, value in (line.split("=", 1) for line in done.stdout.split("\0") if line):
        monkeypatch.setenv(name, value)
    assert Settings().server.api.cors_allowed_origins == allowed


class Schedules:
    """A server with one deployment, whose schedules are all on or all off."""

    def __init__(self, *, active: bool) -> None:
        crons = [CronSchedule(cron=cron, timezone="UTC") for cron in ("0 3 * * *", "0 5 * * *")]
        self.schedules = [DeploymentSchedule(schedule=cron, active=active) for cron in crons]

    def read_deployments(self, **_: object) -> list[Any]:
        made = {"id": UUID(int=1), "name": "nightly", "flow_id": UUID(int=2)}
        return [SimpleNamespace(**made, paused=False, schedules=self.schedules)]

    def read_flow(self, _: object) -> Any:
        return SimpleNamespace(name="rebuild-features")

    def deploy(self) -> int:
        """As Prefect does: the schedules are other ones, on or off as prefect.yaml says."""
        self.schedules = [
            DeploymentSchedule(schedule=each.schedule, active=number == 0)
            for number, each in enumerate(self.schedules)
        ]
        return 0

    def read_deployment_schedules(self, _: object) -> list[DeploymentSchedule]:
        return self.schedules

    def update_deployment_schedule(self, _: object, schedule: UUID, active: bool) -> None:
        (each,) = [each for each in self.schedules if each.id == schedule]
        each.active = active


def prepare(server: Schedules, deploy: Callable[[], int], patch: pytest.MonkeyPatch) -> int:
    """The exit status of what prepares the pool, whose other parts are there already."""
    patch.setattr(prepare_pool, "get_client", lambda **_: contextlib.nullcontext(server))
    patch.setattr(prepare_pool, "deploy", deploy)
    for name in ("put_pool", "put_automation"):
        patch.setattr(prepare_pool, name, lambda *_: "is there")
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:1/api"}):
        return prepare_pool.main()


@pytest.mark.parametrize("active", [False, True], ids=["off", "on"])
def test_a_schedule_stays_on_or_off_when_the_worker_starts_again(
    active: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server = Schedules(active=active)
    assert prepare(server, server.deploy, monkeypatch) == 0
    shown = capsys.readouterr().out
    assert [each.active for each in server.schedules] == [active, active]
    resume = "prefect deployment schedule resume rebuild-features/nightly"
    lines = [f"{resume} {each.id}\n" in shown for each in server.schedules]
    assert lines == [not active, not active]


@pytest.mark.parametrize("code", [0, 1])
def test_each_deployment_has_a_line_and_a_failure_all_that_prefect_printed(
    code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    boxed = "| Deployment 'caption-videos/batch' successfully created with id '7'. |"
    printing = f"print({boxed!r}); print('no such work pool'); raise SystemExit({code})"
    monkeypatch.setattr(prepare_pool, "DEPLOY", (sys.executable, "-c", printing))
    assert prepare_pool.deploy() == code
    first, second, *rest = capsys.readouterr().out.splitlines()
    assert first == "penstock: deploying what changed in prefect.yaml"
    assert second == "penstock: deployed caption-videos/batch"
    assert rest == ([boxed, "no such work pool"] if code else [])


@pytest.mark.in_turn
@pytest.mark.parametrize(
    ("field", "refusal"),
    [
        ("max_store: sixty", "--max-store 'sixty' is not a size. Write it like 200GB"),
        ("max_store: 60", "--max-store 60: 60 bytes? Write 60GiB"),
        ("memory: 4GiB\n        sorces: [a]", "`penstock caption` does not have `sorces`"),
        ("batch_size: eight", "invalid --batch-size 'eight'. Give a whole number"),
        ("fps: 1\n        frames: 2", "--fps and --frames exclude each other"),
        ("prompt: [", "is not valid YAML: while parsing"),
        ("max_store: 60MB", ""),
        ("memory: '{{ prefect.variables.memory }}'", ""),
    ],
)
def test_a_wrong_value_in_prefect_yaml_is_refused_in_one_line(
    field: str, refusal: str, tmp_path: Path
) -> None:
    text = (ROOT / "prefect.yaml").read_text(encoding="utf-8")
    file = tmp_path / "prefect.yaml"
    file.write_text(text.replace("model: demo\n", f"model: demo\n        {field}\n", 1))
    where = "" if "YAML" in refusal else ": caption-videos/batch"
    check_refusals(file, where, refusal)


def check_refusals(file: Path, where: str, refusal: str, *pools: list[str]) -> None:
    """One line with this, or none if it is empty."""
    lines = list(deploy_all.refusals(file, *pools))
    assert len(lines) == bool(refusal)
    for line in lines:
        assert line.startswith(f"penstock: {file}{where}") and refusal in line and "\n" not in line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new", "refusal"),
    [
        (
            "work_pool: *gpu",
            "work_pool: {name: archive}",
            "caption-videos/batch: the server has no work pool archive, only cpu, gpu: name one",
        ),
        ("work_pool: *gpu", "tags: []", "caption-videos/batch: it names no work pool: write"),
        (
            "commands.py:caption_videos",
            "commands.py:caption_video",
            "batch: no flow is at flows/interfaces/prefect/commands.py:caption_video",
        ),
        ("  - name: batch", "  - title: batch", "deployment 1 has no name, or no entrypoint"),
        ('cron: "0 3 * * *"', 'cron: "0 3 * *"', "schedule {'cron': '0 3 * *', 'timezone'"),
        ('cron: "0 3 * * *"', 'crone: "0 3 * * *"', "Unknown schedule type"),
        ("work_pool: *gpu", "work_pool: {name: '{{ prefect.variables.pool }}'}", ""),
    ],
)
def test_what_the_server_would_refuse_is_refused_before_anything_is_deployed(
    old: str, new: str, refusal: str, tmp_path: Path
) -> None:
    file = tmp_path / "prefect.yaml"
    file.write_text((ROOT / "prefect.yaml").read_text(encoding="utf-8").replace(old, new, 1))
    check_refusals(file, ": ", refusal, ["cpu", "gpu"])


def test_the_page_says_how_a_folder_of_ones_own_is_captioned_every_night(tmp_path: Path) -> None:
    """The deployment that it prints goes below those of prefect.yaml, as it stands."""
    page = (ROOT / "docs" / "prefect.md").read_text(encoding="utf-8")
    printed, growing = re.findall(r"```yaml\n(  - name: .*?)```", page, re.DOTALL)
    file = tmp_path / "prefect.yaml"
    file.write_text((ROOT / "prefect.yaml").read_text(encoding="utf-8") + printed + growing)
    assert not [*deploy_all.refusals(file)]
    deployment, ten_minutes = yaml.safe_load(file.read_text("utf-8"))["deployments"][-2:]
    parameters = flow_of(ten_minutes).validate_parameters(ten_minutes["parameters"])
    assert parameters["config"].min_age == 600
    assert deployment["work_pool"] == DEPLOYMENTS[0]["work_pool"]
    assert [each.get("active", True) for each in deployment["schedules"]] == [True]
    flow = flow_of(deployment)
    config = flow.validate_parameters(deployment["parameters"])["config"]
    assert (config.sources, config.max_store) == (("/data/videos",), 200 * 10**9)
    assert f"prefect deployment run '{flow.name}/{deployment['name']}'" in page


def test_the_worker_does_not_start_where_a_deployment_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare(Schedules(active=False), lambda: 2, monkeypatch) == 2
    assert "starting the worker" not in capsys.readouterr().out


FIRST_WORD_SECONDS = 3.0
"""Prefect's import alone takes as long; the first word takes a tenth, but machines are busy."""
START_SECONDS = 240.0


class Healthy(QuietHandler):
    """A server that is up and can do nothing else."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/api/health" else 404)
        self.send_header("Content-Length", "0")
        self.end_headers()


def await_answer(url: str, shown: Dialogue) -> None:
    """Wait until a server on a terminal answers."""
    deadline = time.monotonic() + START_SECONDS
    while not answers(url):
        assert time.monotonic() < deadline and shown.process.poll() is None, shown.text
        time.sleep(0.1)


@pytest.fixture
def port() -> int:
    return free_port()


@contextlib.contextmanager
def terminal(script: str, home: Path, port: int) -> Iterator[Dialogue]:
    """A script on a terminal."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    path = os.pathsep.join([str(Path(sys.executable).parent), kept["PATH"]])
    own = {"PREFECT_HOME": str(home), "PREFECT_SERVER_API_PORT": str(port), "PATH": path}
    env = {**kept, **own, "PYTHONPATH": str(ROOT), "TERM": "xterm"}
    with contextlib.closing(
        Dialogue([str(ROOT / "scripts" / "run" / script)], cwd=ROOT, env=env)
    ) as shown:
        yield shown


@pytest.mark.slow
def test_the_worker_says_at_once_what_it_waits_for_and_then_that_it_is_there(
    tmp_path: Path, port: int
) -> None:
    url = f"http://127.0.0.1:{port}/api"
    with terminal("worker", tmp_path, port) as shown:
        first = f"penstock: waiting for the Prefect server at {url}; start one with `make server`"
        assert shown.shows(re.escape(first), FIRST_WORD_SECONDS), shown.text
        assert shown.text.startswith(first)
        assert not shown.shows("the Prefect server answers", 0.3)
        with served(Healthy, port):
            assert shown.shows("penstock: the Prefect server answers", 10), shown.text


@pytest.mark.in_turn
@pytest.mark.parametrize(
    "requested", ["127.0.0.1:{}/api", "http://127.0.0.1:{}", "http://127.0.0.1:{}/"]
)
def test_an_address_that_no_api_can_have_is_refused_at_once(
    port: int, requested: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = requested.format(port)
    expected = "add /api" if "//" in url else "it must begin with http:// or https://"
    monkeypatch.setattr(login, "WAIT_SECONDS", 1)
    monkeypatch.setenv("PREFECT_API_URL", url)
    lines: list[str] = []
    monkeypatch.setattr(login, "say", lines.append)
    with served(Healthy, port):
        assert login.await_server() == 2, lines
        assert lines[-1].startswith(f"PREFECT_API_URL is {url}") and lines[-1].endswith(expected)
        with (
            temporary_settings({PREFECT_API_URL: url}),
            pytest.raises(UsageError, match=re.escape(f"PREFECT_API_URL is {url}")) as refused,
        ):
            client_settings()
    assert expected in str(refused.value)


MINE = 'active = "mine"\n\n[profiles.mine]\n'
THERE = '[profiles.there]\nPREFECT_API_URL = "http://127.0.0.1:{port}/api"\n'
"""A profile to which Prefect would change over by itself."""


@pytest.mark.slow
def test_the_server_asks_nothing_and_changes_no_profile(
    tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For somebody who has used Prefect before."""
    profiles = MINE + THERE.format(port=port)
    (tmp_path / "profiles.toml").write_text(profiles)
    with terminal("server", tmp_path, port) as shown:
        await_answer(f"http://127.0.0.1:{port}/api", shown)
        assert "How would you like to proceed" not in shown.text
        assert shown.text.startswith(f"penstock: the page is http://127.0.0.1:{port}; it asks for")
        assert str(tmp_path / "penstock-auth") in shown.text.splitlines()[0]
        assert "profile" not in shown.text
        assert (tmp_path / "penstock-auth").read_text().strip() not in shown.text
        monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
        assert is_own_server(f"http://127.0.0.1:{port}/api")
    assert not is_own_server(f"http://127.0.0.1:{port}/api")
    assert (tmp_path / "profiles.toml").read_text() == profiles


FEW = """
name: few
definitions: {sweep: &sweep "flows/interfaces/prefect/sweep.py:sweep_crashed"}
build:
  - prefect.deployments.steps.run_shell_script: {id: clone, script: pwd, stream_output: false}
pull:
  - prefect.deployments.steps.set_working_directory: {directory: "{{ clone.stdout }}"}
deployments:
  - {name: one, entrypoint: *sweep, work_pool: {name: gpu}}
  - {name: two, entrypoint: *sweep, work_pool: {name: gpu}}
"""


@pytest.mark.slow
def test_what_is_unchanged_is_not_deployed_again_and_ctrl_c_ends_it_in_one_line(
    tmp_path: Path, port: int
) -> None:
    clone, home = tmp_path / "clone", tmp_path / "home"
    clone.mkdir()
    for name in ("flows", "scripts", "artifacts", "stages", "penstock", "penstock_demo"):
        (clone / name).symlink_to(ROOT / name)
    (clone / "prefect.yaml").write_text(FEW)
    url = f"http://127.0.0.1:{port}/api"

    def run() -> tuple[int, str]:
        login = (home / "penstock-auth").read_text().strip()
        own = {"PREFECT_API_AUTH_STRING": login, "PREFECT_HOME": str(home), "PREFECT_API_URL": url}
        words = [sys.executable, "-m", "scripts.run.prepare_pool"]
        done = completed(words, cwd=clone, env={**os.environ, **own})
        return done.returncode, done.stdout

    with terminal("server", home, port) as shown:
        await_answer(url, shown)
        code, said = run()
        assert code == 0 and said.count("penstock: deployed sweep-crashed/") == 2, said
        code, said = run()
        assert code == 0 and "deployed sweep" not in said and "2 deployments unchanged" in said
        changed = FEW.replace("name: two,", "name: two, description: another,")
        (clone / "prefect.yaml").write_text(changed)
        code, said = run()
        assert code == 0 and "1 deployment unchanged" in said, said
        assert said.count("penstock: deployed") == said.count("deployed sweep-crashed/two") == 1
        (clone / "prefect.yaml").write_text(changed.replace("gpu}}", "archive}}", 1))
        code, said = run()
        assert code == 2 and "no work pool archive, only gpu" in said and "deployed" not in said
        with terminal("worker", home, port) as worker:
            assert worker.shows("the Prefect server answers", START_SECONDS), worker.text
            os.killpg(worker.process.pid, signal.SIGINT)
            assert worker.shows("penstock: stopped before the worker started", 30), worker.text
            assert "Traceback" not in worker.text


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
RUN = "import sys; from scripts.run.run_worker import run; sys.exit(run(sys.argv[1:]))"


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


@pytest.mark.in_turn
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_node_beside_a_worker_ends_after_it_and_ends_it() -> None:
    node = "import signal, time; signal.signal(signal.SIGTERM, lambda *_: print('the node ends', "
    node += "flush=True) or exit()); print('the node runs', flush=True); time.sleep(60)"
    both = (
        "import signal, sys; from scripts.run.run_worker import run; "
        f"sys.exit(run([sys.executable, '-c', {WORKER!r}], [sys.executable, '-c', {{}}]))"
    )
    command = [sys.executable, "-c", both.format(repr(node))]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        begun = {process.stdout.readline(), process.stdout.readline()}
        assert begun == {"the flow runs\n", "the node runs\n"}
        process.send_signal(signal.SIGTERM)
        ended = process.stdout.read().splitlines()
        assert ended == ["the flow has ended", "the worker ends", "the node ends"]
        assert process.wait(30) == 0
    lost = completed([sys.executable, "-c", both.format(repr("raise SystemExit(3)"))])
    assert lost.returncode == 3 and "the worker ends" in lost.stdout


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
    requests: Any = [SimpleNamespace(flow_run=run)]
    return await worker._submit_scheduled_flow_runs(requests)


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
