"""The processes of a stack, known by a mark in their environment, and their end; looks at /proc
alone."""

import contextlib
import os
import signal
import time
from pathlib import Path

MARK = "PENSTOCK_PREFECT_STACK"
"""In the environment of every process of a stack, so that none outlives it."""
STOP_SECONDS = 10


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
