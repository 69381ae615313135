"""A Prefect server and a worker of one's own, started by the commands of the documentation, for the
scripts that look at what happens on them. It leaves nothing behind.

    with prefect_stack() as stack:
        stack.serve()
        stack.work()
        run = stack.run("caption-videos/batch", config)
"""

import base64
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

from flows.core.machine.server_health import answers
from flows.interfaces.prefect.server import FILE
from scripts.run.stage_processes import MARK, CheckFailed, stop_all
from stages.process.device import CPU_LOCK

ROOT = Path(__file__).resolve().parents[2]
WORKER_STARTED = "started!"
"""Ends the line that a worker prints when it begins to take runs."""
START_SECONDS = 300
RUN_SECONDS = 900
BUSY_SECONDS = 240
"""How long a server that is too busy, or away, is asked again."""
OVER = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


class Stack:
    """A server, a worker and the runs on them, in one folder. All methods raise CheckFailed."""

    def __init__(self, folder: Path, *, database: str = "", root: Path = ROOT) -> None:
        self.folder = folder
        self.root = root
        """The clone whose commands and flows are used."""
        self.port = free_port()
        self.api = f"http://127.0.0.1:{self.port}/api"
        self.device_lock = folder / "device.lock"
        """Held by whatever runs a model on the CPU."""
        self._database = database
        self._began = time.monotonic()

    def serve(self) -> "subprocess.Popen[bytes]":
        """`make server`, until it answers; again on the same port and database, if called again."""
        command = str(self.root / "scripts/run/server")
        server = self.start("server", command, env=self.environment(client=False))
        self.wait_up(server, "server", lambda: answers(self.api))
        if (self.folder / "prefect" / "prefect.db").exists() == bool(self._database):
            raise CheckFailed(f"the server does not use {self._database or 'SQLite'}")
        self.say(f"started a Prefect server on port {self.port}")
        return server

    def work(self) -> "subprocess.Popen[bytes]":
        """`make worker`, until it takes runs: the pool, the deployments, the automation."""
        log = self.folder / "worker.log"
        before = log.stat().st_size if log.exists() else 0
        command = str(self.root / "scripts/run/worker")
        worker = self.start("worker", command, env=self.environment(client=False))
        started = WORKER_STARTED.encode()
        self.wait_up(worker, "worker", lambda: started in log.read_bytes()[before:])
        self.say("deployed what prefect.yaml names and started a worker")
        return worker

    def wait_up(
        self, process: "subprocess.Popen[bytes]", name: str, up: Callable[[], bool]
    ) -> None:
        """Until something is so, or the process has ended before it was."""
        deadline = time.monotonic() + START_SECONDS
        while not up():
            if process.poll() is not None or time.monotonic() > deadline:
                raise CheckFailed(f"the {name} did not start\n{self.log_end(name)}")
            time.sleep(0.2)

    def submit(self, deployment: str, config: Mapping[str, Any]) -> bool:
        """Ask for a run; whether that was taken."""
        value = f"config={json.dumps(config)}"
        return self.prefect("deployment", "run", deployment, "--param", value, check=False) == 0

    def run(self, deployment: str, config: Mapping[str, Any]) -> dict[str, Any]:
        """A run of the deployment, awaited; it must complete."""
        before = time.monotonic()
        flow = deployment.split("/")[0]
        known = {run["id"] for run in self.flow_runs(flow)}
        if not self.submit(deployment, config):
            raise CheckFailed(f"{deployment} does not take {config}")
        requests = [run for run in self.flow_runs(flow) if not run["auto_scheduled"]]
        (new,) = [run["id"] for run in requests if run["id"] not in known]
        run = self.completed(new)
        self.say(f"{deployment}: {described(run)} in {time.monotonic() - before:.0f} s")
        return run

    def ended(self, run_id: str, seconds: float = RUN_SECONDS) -> dict[str, Any]:
        """The flow run once it is over."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            run: dict[str, Any] = self.ask("GET", f"/flow_runs/{run_id}")
            if run["state"]["type"] in OVER:
                return run
            time.sleep(1)
        raise CheckFailed(f"{described(run)} after {seconds:.0f} s\n{self.log_end('worker')}")

    def completed(
        self, run_id: str, expected: str = "COMPLETED", seconds: float = RUN_SECONDS
    ) -> dict[str, Any]:
        """The flow run once it is over; it must be in that state."""
        run = self.ended(run_id, seconds)
        if run["state"]["type"] != expected:
            raise CheckFailed(f"{described(run)}, not {expected}\n{self.log_end('worker')}")
        return run

    def create_run(self, deployment: str, parameters: Mapping[str, Any], **more: Any) -> str:
        """Ask for a run at once; its id."""
        made = self.ask("GET", f"/deployments/name/{deployment}")
        body = {"parameters": parameters, "state": {"type": "SCHEDULED"}, **more}
        path = f"/deployments/{made['id']}/create_flow_run"
        return str(self.ask("POST", path, body)["id"])

    def flow_runs(self, flow: str | None = None) -> list[dict[str, Any]]:
        """Runs of a flow, or all, in the order that they were started in."""
        expected = {"flows": {"name": {"any_": [flow]}}} if flow else {}
        runs: list[dict[str, Any]] = self.ask(
            "POST", "/flow_runs/filter", {**expected, "sort": "START_TIME_ASC"}
        )
        return runs

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """One request to the server's API."""
        login = base64.b64encode(self.login().encode()).decode()
        request = urllib.request.Request(
            self.api + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "Content-Type": "application/json",
                "Authorization": f"Basic {login}",
            },
        )
        deadline = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    text = answer.read()
                return json.loads(text) if text else None
            except OSError as error:
                # 503 is how the server says that its database is locked.
                locked = getattr(error, "code", 0) == HTTPStatus.SERVICE_UNAVAILABLE
                away = isinstance(getattr(error, "reason", None), ConnectionRefusedError)
                looks = method == "GET" or path.endswith("/filter")
                again = locked or away or (looks and not isinstance(error, HTTPError))
                if not again or time.monotonic() > deadline:
                    raise CheckFailed(f"{path}: {error}") from error
            time.sleep(1)

    def prefect(self, *arguments: str, check: bool = True) -> int:
        """The command `prefect` on this server; returns its exit code."""
        return self.call("prefect", *arguments, env=self.environment(), check=check)

    def call(self, module: str, *arguments: str, env: Mapping[str, str], check: bool = True) -> int:
        """Run a module to its end."""
        done = self.ended_command(sys.executable, "-m", module, *arguments, env=env)
        if check and done.returncode != 0:
            raise CheckFailed(f"{' '.join(done.args)}\n{done.stdout}{done.stderr}")
        return done.returncode

    def ended_command(
        self, *command: str, env: Mapping[str, str] | None = None
    ) -> "subprocess.CompletedProcess[str]":
        """A command that has ended, however."""
        env = env or self.environment()
        return subprocess.run(
            command, cwd=self.root, env=env, capture_output=True, text=True, check=False
        )

    def start(
        self, name: str, *command: str, env: Mapping[str, str] | None = None
    ) -> "subprocess.Popen[bytes]":
        """A process that stays, with a log."""
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                command,
                cwd=self.root,
                env=env or self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def login(self) -> str:
        """What the server asks of its clients; made by its first start."""
        made = self.folder / "prefect" / FILE
        return made.read_text().strip() if made.exists() else ""

    def environment(self, *, client: bool = True) -> dict[str, str]:
        """Ours, with a Prefect that has none of the user's settings and reports to nobody. Server
        and worker, which are no `client`, find their login themselves."""
        kept = {
            k: v
            for k, v in os.environ.items()
            if not k.startswith("PREFECT_") and k != "PENSTOCK_DATABASE"
        }
        given = {
            "PENSTOCK_DATABASE": self._database,
            CPU_LOCK: str(self.device_lock),
            "PREFECT_API_AUTH_STRING": self.login() if client else "",
        }
        return {
            **kept,
            **{name: value for name, value in given.items() if value},
            MARK: str(self.folder),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", "")]),
            "PREFECT_HOME": str(self.folder / "prefect"),
            "PREFECT_API_URL": self.api,
            "PREFECT_SERVER_API_PORT": str(self.port),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            "DO_NOT_TRACK": "1",
            "PYTHONPATH": os.pathsep.join(
                [str(self.root), *filter(None, [kept.get("PYTHONPATH")])]
            ),
        }

    def log_end(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")[-3000:]

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self._began:5.0f} s  {text}", flush=True)


@contextlib.contextmanager
def prefect_stack(database: str = "", root: Path = ROOT) -> Iterator[Stack]:
    """A stack in a temporary folder; at the end every process of it is gone, and the folder."""
    folder = Path(tempfile.mkdtemp(prefix="penstock-stack-"))
    try:
        yield Stack(folder, database=database, root=root)
    finally:
        stop_all(folder)
        shutil.rmtree(folder, ignore_errors=True)


def described(run: Mapping[str, Any]) -> str:
    return f"{run['name']} is {run['state']['name']}: {run['state']['message']}"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port
