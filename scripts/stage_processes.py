"""Which processes of a stack run a stage, who started them, and when they are gone; looks at /proc
alone."""

import contextlib
import time
from pathlib import Path

from scripts.marked_processes import marked
from scripts.prefect_stack import CheckFailed, Stack

CHILD = "stages.process.child"


def children(stack: Stack) -> list[int]:
    """The stages that run now."""
    return [pid for pid in marked(stack.folder) if CHILD in command(pid)]


def command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""


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
        while CHILD in command(pid):
            if time.monotonic() > deadline:
                raise CheckFailed(f"process {pid} is still there after {seconds} s")
            time.sleep(0.01)
