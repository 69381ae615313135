"""A cut stage that dies of one file, as a decoder may of a damaged one."""

import os
import signal
from typing import Any

from stages.frames.cut import run as cut
from stages.process.report import Report


def stop(job: dict[str, Any], report: Report) -> None:
    """Cut the first stretch and be asked to end."""
    cut({**job, "cuts": job["cuts"][:1]}, report)
    os.kill(os.getpid(), signal.SIGTERM)


def run(job: dict[str, Any], report: Report) -> None:
    """Cut until it comes to the second stretch of a file called `deadly`."""
    seen = 0
    for one in job["cuts"]:
        seen += "deadly" in one["path"]
        if seen == 2:
            os.kill(os.getpid(), signal.SIGSEGV)
        cut({**job, "cuts": [one]}, report)


def killed(job: dict[str, Any], report: Report) -> None:
    """Is killed after it has cut one stretch, until there is but one to cut."""
    if len(job["cuts"]) == 1:
        cut(job, report)
        return
    cut({**job, "cuts": job["cuts"][:1]}, report)
    os.kill(os.getpid(), signal.SIGKILL)


def killed_at_once(job: dict[str, Any], report: Report) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
