"""Stages whose entries are functions of a test file, each in a process of its own."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stages.process.events import Event
from stages.process.fork_client import ForkServer
from stages.process.stage_process import ProcessSettings, StageProcess
from tests.support.builders.jobs import made_job


def hold(count: int) -> bytearray:
    """Return that many bytes after writing to every page."""
    held = bytearray(count)
    held[::4096] = b"x" * len(held[::4096])
    return held


def until(holds: Callable[[], object]) -> None:
    """Wait for at most a minute."""
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def started(
    module: str,
    name: str,
    folder: Path,
    heard: list[Event] | None = None,
    *,
    budget: int = 0,
    forks: ForkServer | None = None,
    seconds: float = 0.0,
    **job: Any,
) -> StageProcess:
    """A stage that logs to `folder`/log and whose events come to `heard`."""
    events: list[Event] = [] if heard is None else heard
    settings = ProcessSettings(
        name=name,
        job=made_job(**job),
        device="cpu",
        log=folder / "log",
        budget=budget,
        seconds=seconds,
    )
    return StageProcess(settings, f"{module}:{name}", lambda _, event: events.append(event), forks)
