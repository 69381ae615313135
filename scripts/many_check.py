"""Shows what many machines make of one run: starts a Prefect server and workers that stand for
machines, hands out portions that wait as a GPU would, and compares times and bytes.

    python scripts/many_check.py [--workers 1,2,4] [--seconds 120] [--portions 8]
    python scripts/many_check.py --deaths      # kills a worker, then who hands out, and the server
"""

import argparse
import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import penstock_demo
from scripts.prefect_stack import ROOT, WORKER_STARTED, Stack, prefect_stack
from scripts.stage_processes import MARK, CheckFailed, checked, family
from stages.process.lock import CPU_LOCK

DEPLOYMENT = "caption-many/batch"
PORTION = "caption-videos"
FILES = 1
"""Files of a portion."""
PATIENCE = 3600.0
FASTEST = {1: 1.0, 2: 1.9, 4: 3.4}
"""Number of workers → how many times as fast as one they should be."""


class Machines:
    """A server, and workers of which each has a folder and a lock of its own, as a machine has."""

    def __init__(self, stack: Stack, seconds: float) -> None:
        self.stack = stack
        self._seconds = seconds
        self._numbers = itertools.count(1)
        self.workers: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, pool: str) -> str:
        """Start a worker of a pool, and wait until it takes runs."""
        name = f"{pool}-{next(self._numbers)}"
        environment = {
            **self.stack.environment(client=False),
            "POOL": pool,
            CPU_LOCK: str(self.stack.folder / f"{name}.lock"),
            "PENSTOCK_CHECK_WAIT": str(self._seconds),
            MARK: str(self.stack.folder),
        }
        waiting = str(ROOT / "scripts" / "waiting")
        environment["PYTHONPATH"] = os.pathsep.join([waiting, environment["PYTHONPATH"]])
        worker = self.stack.start(name, str(ROOT / "scripts" / "worker"), env=environment)
        self.stack.wait_up(worker, name, lambda: WORKER_STARTED in self.stack.log_end(name))
        self.workers[name] = worker
        return name

    def kill(self, name: str) -> None:
        """Kill a worker with all that it started, as when a machine goes away."""
        worker = self.workers.pop(name)
        for pid in reversed(family(worker.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        worker.wait()

    def end(self) -> None:
        """End all workers."""
        for name in list(self.workers):
            self.kill(name)


def parameters(clips: Path, out: Path) -> dict[str, Any]:
    """Of the run that hands out."""
    config = {"sources": [str(clips)], "model": "demo", "format": ["txt"]}
    return {"config": {**config, "out": str(out), "store": f"{out}-store"}, "files": FILES}


def bytes_of(out: Path) -> bytes:
    return (out / "captions.jsonl").read_bytes()


def media(folder: Path, files: int) -> Path:
    """Clips of the demo world, each of them another content."""
    clips = folder / "clips"
    clips.mkdir()
    for number, path in enumerate(sorted(penstock_demo.CLIPS.glob("*.mp4"))[:files]):
        shutil.copy(path, clips / f"{number:02d}{path.suffix}")
    return clips


def check_times(stack: Stack, workers: list[int], portions: int, seconds: float) -> None:
    """Time the same run with so many workers each; print how many times as fast as one they are."""
    times: dict[int, float] = {}
    made: set[bytes] = set()
    clips = media(stack.folder, FILES * portions)
    stack.serve()
    for count in workers:
        machines = Machines(stack, seconds)
        for pool in ("cpu", *["gpu"] * count):
            machines.start(pool)
        out = stack.folder / "out" / str(count)
        run = stack.create_run(DEPLOYMENT, parameters(clips, out))
        times[count] = stack.completed(run, seconds=PATIENCE)["total_run_time"]
        made.add(bytes_of(out).replace(str(out).encode(), b""))
        machines.end()
        stack.say(
            f"{count} workers: {portions} portions of {seconds:.0f} s in {times[count]:.0f} s"
        )
    faster = {count: times[1] / took for count, took in times.items()} if 1 in times else {}
    for count, ratio in faster.items():
        print(f"{count} workers: x {ratio:.2f} of one (goal x {FASTEST.get(count, count)})")
    print(f"bytes of captions.jsonl: {'the same' if len(made) == 1 else 'they differ'}")
    if len(made) != 1 or any(ratio < FASTEST.get(count, 0) for count, ratio in faster.items()):
        raise CheckFailed("bytes differ, or more workers are too slow")


def check_deaths(stack: Stack, portions: int, seconds: float) -> None:
    """Kill a worker, who hands out, and the server; see that all is made, and nothing twice."""
    clips = media(stack.folder, FILES * portions)
    server = stack.serve()
    machines = Machines(stack, seconds)
    parent, victim = machines.start("cpu"), machines.start("gpu")
    machines.start("gpu")
    out = stack.folder / "out" / "killed"
    run = stack.create_run(DEPLOYMENT, parameters(clips, out))
    _await_running(stack, 2)
    machines.kill(victim)
    stack.say("killed a worker in a portion")
    machines.start("gpu")
    machines.kill(parent)
    stack.say("killed who hands out")
    server.send_signal(signal.SIGTERM)
    server.wait()
    stack.serve()
    stack.say("started the server again")
    machines.start("cpu")
    # What the automation says of runs whose machine is gone after two minutes.
    gone = [other["id"] for other in stack.flow_runs(PORTION) if _is_lost(stack, other)]
    for each in (run, *gone):
        _set_state(stack, each, {"type": "CRASHED", "name": "Crashed"})
    _set_state(stack, run, {"type": "SCHEDULED"})
    stack.completed(run, seconds=PATIENCE)
    # How many captions each run of a portion made, and what the last run did again.
    records = [json.loads(path.read_text()) for path in out.glob("portions/*/run.json")]
    made = [record["stages"][-1]["items"] for record in records]
    again = [stage["items"] for stage in json.loads((out / "run.json").read_text())["stages"]]
    stack.say(f"captions by the portions' runs: {made}; by the last run: {again[-1]}")
    machines.end()
    plain = stack.folder / "plain"
    words = [str(clips), "--model", "demo", "--out", str(plain), "--store", f"{plain}-store"]
    stack.call("flows.cli.main", "caption", *words, env=stack.environment())
    same = bytes_of(out) == bytes_of(plain)
    print(f"bytes of one machine: {'the same' if same else 'they differ'}")
    if not same or sum(made) != FILES * portions or any(again):
        raise CheckFailed("something was made twice, or otherwise than by one machine")


def _await_running(stack: Stack, count: int) -> None:
    """Wait until so many portions are at work."""
    deadline = time.monotonic() + PATIENCE
    while sum(run["state"]["type"] == "RUNNING" for run in stack.flow_runs(PORTION)) < count:
        if time.monotonic() > deadline:
            raise CheckFailed("no portion is at work")
        time.sleep(1)
    time.sleep(20)


def _set_state(stack: Stack, run: str, state: dict[str, str]) -> None:
    stack.ask("POST", f"/flow_runs/{run}/set_state", {"state": state, "force": True})


def _is_lost(stack: Stack, run: dict[str, Any]) -> bool:
    """Return whether a run is said to run, and no process works on it."""
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if run["id"] in path.read_text(errors="replace"):
                return False
    return bool(run["state"]["type"] == "RUNNING")


def main() -> int:
    """0 when it is as fast as it should be, or all is there after the deaths."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", default="1,2,4")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--portions", type=int, default=8)
    parser.add_argument("--deaths", action="store_true")
    given = parser.parse_args()

    def check() -> None:
        with prefect_stack() as stack:
            if given.deaths:
                check_deaths(stack, given.portions, given.seconds)
            else:
                workers = [int(count) for count in given.workers.split(",")]
                check_times(stack, workers, given.portions, given.seconds)

    return checked(check, "all as it should be")


if __name__ == "__main__":
    sys.exit(main())
