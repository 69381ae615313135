"""Runs `prefect worker start` and ends it in order: the flows first, then the worker. Its
arguments are the worker's. With RAY in the environment, a Ray node runs beside it and ends last.

A Prefect worker that gets SIGTERM kills its flows at once. They would say Running until their
heartbeats are missed; told first, they stop their stage and say how they ended.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import NoReturn

FLOW_SECONDS = 30.0
"""What a flow has for its last words; its stage's process ends within a second or two."""
WORKER_SECONDS = 10.0
POLL_SECONDS = 1.0
PR_SET_PDEATHSIG = 1
HEAD = ("--head", "--port=6379", "--include-dashboard=false")
RAY = (sys.executable, "-P", "-m", "ray.scripts.scripts")
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Told(Exception):
    """Somebody wants the worker to end."""


def message_of(number: int, frame: FrameType | None) -> NoReturn:
    raise Told


def run(command: list[str], node: list[str] | None = None) -> int:
    """Return the exit code of the worker, or of the Ray node if that ends first; 0 after a signal
    to end."""
    for number in ENDING:
        # Under nohup a hangup is none.
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, message_of)
    # A session of its own: Ctrl-C in the terminal is for this process alone.
    processes = [
        subprocess.Popen(words, start_new_session=True, preexec_fn=die_with_parent)
        for words in (command, node)
        if words
    ]
    code = 0
    with contextlib.suppress(Told):
        code = first_ended(processes)
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)
    end_flows(processes[0].pid)
    for process in processes:
        end(process)
    return code


def first_ended(processes: list["subprocess.Popen[bytes]"]) -> int:
    """The exit code of the process that ends first."""
    if len(processes) == 1:
        return processes[0].wait()
    while True:
        for process in processes:
            if (code := process.poll()) is not None:
                return code
        time.sleep(POLL_SECONDS)


def end(process: "subprocess.Popen[bytes]") -> None:
    """End a process, which is killed if it does not end in time."""
    process.terminate()
    try:
        process.wait(WORKER_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def ray_node(where: str) -> list[str]:
    """The command of a Ray node: `head`, or one of the head at HOST:PORT."""
    place = HEAD if where == "head" else (f"--address={where}",)
    return [*RAY, "start", *place, "--block", "--disable-usage-stats"]


def die_with_parent() -> None:
    """In the worker before it is one: it must not outlive this process, whatever kills that."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def end_flows(worker: int) -> None:
    """Tell the worker's flows to end, and wait until they have."""
    before: set[int] = set()
    deadline = time.monotonic() + FLOW_SECONDS
    while (flows := children(worker)) and time.monotonic() < deadline:
        for flow in flows - before:
            with contextlib.suppress(ProcessLookupError):
                os.kill(flow, signal.SIGTERM)
        before |= flows
        time.sleep(0.2)


def children(pid: int) -> set[int]:
    """Processes that a process has started, by whichever of its threads."""
    found: set[int] = set()
    with contextlib.suppress(OSError):  # the process has ended meanwhile
        for path in Path(f"/proc/{pid}/task").glob("*/children"):
            with contextlib.suppress(OSError):  # or a thread
                found.update(map(int, path.read_text().split()))
    return found


if __name__ == "__main__":
    prefect = [sys.executable, "-P", "-m", "scripts.run.patient_worker"]
    node = ray_node(os.environ["RAY"]) if os.environ.get("RAY") else None
    sys.exit(run([*prefect, "worker", "start", *sys.argv[1:]], node))
