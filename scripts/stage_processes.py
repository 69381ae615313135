"""Which processes of a stack run a stage, who started them, and when they are gone; looks at /proc
alone."""

import contextlib
import time
from pathlib import Path

from scripts.marked_processes import marked
from scripts.prefect_stack import CheckFailed, Stack

CHILD, SERVER = "stages.process.child", "stages.process.fork_server"


def children(stack: Stack) -> list[int]:
    """Return the stages that run now."""
    return [pid for pid in marked(stack.folder) if stage_of(pid)]


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
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += family(int(child))
    return found


def wait_gone(pids: list[int], seconds: float) -> None:
    """Raises CheckFailed."""
    deadline = time.monotonic() + seconds
    for pid in pids:
        while stage_of(pid):
            if time.monotonic() > deadline:
                raise CheckFailed(f"process {pid} is still there after {seconds} s")
            time.sleep(0.01)
