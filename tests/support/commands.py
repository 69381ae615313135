"""Commands that are run to their end."""

import resource
import subprocess
from collections.abc import Sequence
from os import PathLike
from typing import Any

from tests.support.pipeline import ROOT


def completed(
    command: Sequence[str | PathLike[str]], **options: Any
) -> "subprocess.CompletedProcess[str]":
    """What came of a command, in the clone unless told otherwise, with all that it printed."""
    messages: dict[str, Any] = {"cwd": ROOT, "capture_output": True, "text": True, "check": False}
    return subprocess.run(command, **{**messages, **options})


def begun(command: Sequence[str | PathLike[str]], **options: Any) -> "subprocess.Popen[str]":
    """A command that goes on, in the clone unless told otherwise, with all that it prints in one
    stream."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, text=True, **{"cwd": ROOT, **streams, **options})


def ended_cpu_seconds() -> float:
    """The processor time of the processes below this one that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
