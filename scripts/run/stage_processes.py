"""The processes of a stack, known by a mark in their environment, which of them run a stage, who
started them, and their end, by /proc alone; and how a check of them ends."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from scripts.run import run_worker
from scripts.run.warm import forked_for

MARK = "PENSTOCK_PREFECT_STACK"
"""In the environment of every process of a stack, so that none outlives it."""
STOP_SECONDS = 10
CHILD, SERVER = "stages.process.child", "stages.process.fork_server"


class CheckFailed(Exception):
    """What was found is not what was promised."""


def checked(check: Callable[[], None], good: str) -> int:
    """Run a check, print its result, and return its exit status."""
    try:
        check()
    except CheckFailed as error:
        print(f"FAILED: {error}", file=sys.stderr)
        return 1
    print(good)
    return 0


def stop_all(folder: Path) -> None:
    """End every process of a stack, asked first."""
    deadline = time.monotonic() + STOP_SECONDS
    while running := marked(folder):
        late = time.monotonic() > deadline
        for pid in running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL if late else signal.SIGTERM)
        time.sleep(0.5)


def marked(folder: Path) -> list[int]:
    """The processes of a stack."""
    mark = f"{MARK}={folder}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


def children(folder: Path) -> list[int]:
    """Return the stages of a stack that run now."""
    return [pid for pid in marked(folder) if stage_of(pid)]


def stage_of(pid: int) -> str:
    """Return the name of the stage that a process runs; empty for one that runs none."""
    with contextlib.suppress(OSError):
        name = Path(f"/proc/{pid}/comm").read_text().strip()
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        if any(module.encode() in command for module in (CHILD, SERVER)):
            return "" if name.startswith("python") else name
    return ""


def flow_of(pid: int) -> int:
    """Return the process that had a stage started, though another one may have been forked."""
    parent = parent_of(pid)
    forked = SERVER.encode() in Path(f"/proc/{parent}/cmdline").read_bytes()
    return parent_of(parent) if forked else parent


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def family(pid: int) -> list[int]:
    """A process and all below it."""
    return [pid, *descendants(pid)]


def descendants(pid: int) -> list[int]:
    """Return all processes below one: a stage may be forked from another one."""
    return [each for child in child_processes(pid) for each in (child, *descendants(child))]


def child_processes(pid: int) -> list[int]:
    """Return the processes that one has started, and the fork that stands for it as a fork
    server."""
    return [*forked_for(pid), *run_worker.children(pid)]


def wait_gone(pids: list[int], seconds: float) -> None:
    """Raises CheckFailed."""
    deadline = time.monotonic() + seconds
    for pid in pids:
        while stage_of(pid):
            if time.monotonic() > deadline:
                raise CheckFailed(f"process {pid} is still there after {seconds} s")
            time.sleep(0.01)
