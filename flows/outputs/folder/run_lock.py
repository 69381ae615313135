"""Holds the lock of a run's output folder."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from artifacts.disk.faults import disk_faults
from artifacts.disk.files import sweep
from artifacts.disk.locks import holder, try_hold
from artifacts.disk.regular_files import guard, refuse_links
from artifacts.errors import UsageError


@contextlib.contextmanager
def only_run_in(out: Path, doing: str, another: str) -> Iterator[None]:
    """Hold the lock of a run's folder, so that two runs never overwrite each other's files. Raises
    UsageError if another run holds it, EnvironmentFault if the folder cannot be created."""
    path = out / ".lock"
    with disk_faults(out):
        refuse_links(out)
        guard(out)
        out.mkdir(parents=True, exist_ok=True)
        lock = try_hold(path)
    if lock is None:
        raise UsageError(
            f"another run is already {doing} {out} ({holder(path)})",
            hint=f"Wait for it, watch it with `penstock status {out}`, or {another}",
        )
    with lock:
        sweep(out)
        yield
