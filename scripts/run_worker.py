"""Runs `prefect worker start` and ends it in order: the flows first, then the worker. Its
arguments are the worker's.

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
PR_SET_PDEATHSIG = 1
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Told(Exception):
    """Somebody wants the worker to end."""


def message_of(number: int, frame: FrameType | None) -> NoReturn:
    raise Told


def run(command: list[str]) -> int:
    """The exit code of the worker, or 0 if it was told to end."""
    for number in ENDING:
        # Under nohup a hangup is none.
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, message_of)
    # A session of its own: Ctrl-C in the terminal is for this process alone.
    worker = subprocess.Popen(command, start_new_session=True, preexec_fn=die_with_parent)
    try:
        return worker.wait()
    except Told:
        for number in ENDING:
            signal.signal(number, signal.SIG_IGN)
    end_flows(worker.pid)
    worker.terminate()
    try:
        worker.wait(WORKER_SECONDS)
    except subprocess.TimeoutExpired:
        worker.kill()
        worker.wait()
    return 0


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
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # a thread that has ended meanwhile
            found.update(map(int, path.read_text().split()))
    return found


if __name__ == "__main__":
    prefect = [sys.executable, "-P", "-m", "scripts.patient_worker"]
    sys.exit(run([*prefect, "worker", "start", *sys.argv[1:]]))
