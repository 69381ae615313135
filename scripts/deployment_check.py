"""Shows that a deployment makes the very bytes that the plain command makes: starts a Prefect
server, a worker and all that belongs to them, compares, and leaves nothing behind.

    python scripts/deployment_check.py [--clips FOLDER]
"""

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
COMPARED = ("*.jsonl", "*.txt", "*.vtt")
RUN_SECONDS = 900
STOP_SECONDS = 10
MARK = "PENSTOCK_DEPLOYMENT_CHECK"
"""In the environment of every process of this check, so that none outlives it."""


class CheckFailed(Exception):
    """What was found is not what was promised."""


class Check:
    """A server, a pool, a worker and the runs on them, in one temporary folder."""

    def __init__(self, folder: Path, clips: Path) -> None:
        self._folder = folder
        self._clips = clips
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self._api = f"http://127.0.0.1:{self._port}/api"
        self._started = time.monotonic()

    def run(self) -> None:
        """Every step, in order. Raises CheckFailed."""
        self.serve()
        self.prefect("work-pool", "create", "gpu", "--type", "process")
        self.say("made the work pool gpu")
        self.prefect("--no-prompt", "deploy", "--all")
        self.say("deployed caption-videos/batch from prefect.yaml")
        self.start("worker", "worker", "start", "--pool", "gpu", "--type", "process", "--limit=1")
        self.say("started a worker")
        self.refuses({"sources": []})
        self.refuses({"sources": ["a.mp4"], "fsp": 2})
        deployed = self.deployment_run()
        if not all(items(deployed).values()):
            raise CheckFailed(f"the deployment run says that it made {items(deployed)}")
        plain = self.plain_run()
        self.compare(deployed, plain)
        again = items(self.deployment_run())
        if any(again.values()):
            raise CheckFailed(f"a second deployment run did work again: {again}")
        self.say("a second deployment run did no stage work")
        self.compare(deployed, plain)

    def serve(self) -> None:
        """Start the server and wait for it."""
        from flows.prefect_server import START_SECONDS, answers

        where = ("--host", "127.0.0.1", "--port", str(self._port))
        server = self.start("server", "server", "start", *where)
        deadline = time.monotonic() + START_SECONDS
        while not answers(self._api):
            if server.poll() is not None or time.monotonic() > deadline:
                raise CheckFailed(f"the server did not start\n{self.log_end('server')}")
            time.sleep(0.2)
        self.say(f"started a Prefect server on port {self._port}")

    def refuses(self, config: Mapping[str, Any]) -> None:
        """Bad parameters make no run."""
        before = len(self.flow_runs())
        code = self.prefect(*self.submit(config), check=False)
        if code == 0 or len(self.flow_runs()) != before:
            raise CheckFailed(f"{config} was taken for good parameters")
        self.say(f"{json.dumps(config)} was refused before a run")

    def deployment_run(self) -> Path:
        """A run of the deployment on the clips, awaited; returns its folder of outputs."""
        out = self._folder / "deployed"
        before = time.monotonic()
        config = self.config(out, store="deployed-store")
        watch = ("--watch", "--watch-timeout", str(RUN_SECONDS))
        self.prefect(*self.submit(config), *watch, check=False)
        state = self.flow_runs()[0]["state"]
        if state["type"] != "COMPLETED":
            raise CheckFailed(
                f"the flow run is {state['name']}: {state['message']}\n{self.log_end('worker')}"
            )
        seconds = time.monotonic() - before
        self.say(f"deployment run {state['name']} in {seconds:.0f} s: {state['message']}")
        return out

    def plain_run(self) -> Path:
        """The plain command on the same clips, with a store of its own."""
        out = self._folder / "plain"
        config = self.config(out, store="plain-store")
        before = time.monotonic()
        options = [f"--{name}={config[name]}" for name in ("model", "out", "store")]
        options.append(f"--format={','.join(config['format'])}")
        env = {k: v for k, v in self.environment().items() if k != "PREFECT_API_URL"}
        self.call("flows.cli.main", "caption", *config["sources"], *options, env=env)
        self.say(f"plain command in {time.monotonic() - before:.0f} s")
        return out

    def config(self, out: Path, store: str) -> dict[str, Any]:
        return {
            "sources": [str(self._clips)],
            "model": "demo",
            "out": str(out),
            "store": str(self._folder / store),
            "format": ["txt", "vtt"],
        }

    def submit(self, config: Mapping[str, Any]) -> list[str]:
        value = f"config={json.dumps(config)}"
        return ["deployment", "run", "caption-videos/batch", "--param", value]

    def compare(self, deployed: Path, plain: Path) -> None:
        """The same files with the same bytes. Raises CheckFailed."""
        found = [{p.name: p.read_bytes() for p in outputs(out)} for out in (deployed, plain)]
        if not found[1]["captions.jsonl"]:
            raise CheckFailed("the plain command captioned nothing")
        names = sorted({*found[0], *found[1]})
        differing = [name for name in names if found[0].get(name) != found[1].get(name)]
        if differing:
            raise CheckFailed(f"these files differ: {', '.join(differing)}")
        total = sum(map(len, found[1].values()))
        self.say(f"{len(found[1])} files, {total} bytes: equal")

    def flow_runs(self) -> list[dict[str, Any]]:
        """All runs, the newest first."""
        request = urllib.request.Request(
            f"{self._api}/flow_runs/filter",
            data=json.dumps({"sort": "START_TIME_DESC"}).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            runs: list[dict[str, Any]] = json.load(answer)
        return runs

    def prefect(self, *arguments: str, check: bool = True) -> int:
        return self.call("prefect", *arguments, env=self.environment(), check=check)

    def call(self, module: str, *arguments: str, env: Mapping[str, str], check: bool = True) -> int:
        """Run to the end. Raises CheckFailed with what it printed."""
        command = [sys.executable, "-m", module, *arguments]
        done = subprocess.run(
            command, cwd=ROOT, env=env, capture_output=True, text=True, check=False
        )
        if check and done.returncode != 0:
            raise CheckFailed(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
        return done.returncode

    def start(self, name: str, *arguments: str) -> "subprocess.Popen[bytes]":
        """A process that stays until the end, with a log."""
        with (self._folder / f"{name}.log").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "prefect", *arguments],
                cwd=ROOT,
                env=self.environment(),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def environment(self) -> dict[str, str]:
        """Ours, with a Prefect that knows nothing of the user's and reports to nobody."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
        return {
            **kept,
            MARK: str(self._folder),
            "PREFECT_HOME": str(self._folder / "prefect"),
            "PREFECT_API_URL": self._api,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            "DO_NOT_TRACK": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [kept.get("PYTHONPATH")])]),
        }

    def log_end(self, name: str) -> str:
        return (self._folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")[-3000:]

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self._started:5.0f} s  {text}", flush=True)


def outputs(out: Path) -> list[Path]:
    """What people asked for; not the record and the logs, which tell times."""
    return [path for pattern in COMPARED for path in sorted(out.glob(pattern))]


def items(out: Path) -> dict[str, int]:
    """Stage → items that the run made."""
    record = json.loads((out / "run.json").read_text(encoding="utf-8"))
    return {stage["name"]: stage["items"] for stage in record["stages"]}


def stop_all(folder: Path) -> None:
    """End every process of this check, asked first."""
    deadline = time.monotonic() + STOP_SECONDS
    while running := marked(folder):
        late = time.monotonic() > deadline
        for pid in running:
            try:
                os.kill(pid, signal.SIGKILL if late else signal.SIGTERM)
            except ProcessLookupError:
                continue
        time.sleep(0.5)


def marked(folder: Path) -> list[int]:
    mark = f"{MARK}={folder}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def main() -> int:
    """0 when the flow run completed and every byte is equal."""
    sys.path.insert(0, str(ROOT))
    import demo

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=Path, default=demo.CLIPS, help="folder [the demo's]")
    clips = parser.parse_args().clips.absolute()
    folder = Path(tempfile.mkdtemp(prefix="penstock-deployment-"))
    try:
        Check(folder, clips).run()
    except CheckFailed as error:
        print(f"FAILED: {error}", file=sys.stderr)
        return 1
    finally:
        stop_all(folder)
        shutil.rmtree(folder, ignore_errors=True)
    print("the deployment makes the same bytes as the plain command")
    return 0


if __name__ == "__main__":
    sys.exit(main())
