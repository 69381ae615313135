"""Stages that die of one file, or never end over it, as a decoder may of a damaged one."""

import ctypes
import hashlib
import os
import signal
from pathlib import Path
from typing import Any

from stages.frames import frame_recorder, video
from stages.frames import run as stage
from stages.frames.cut import run as cut
from stages.frames.video import Video
from stages.process.events import EventReporter

CRASH, HANG, KILL = b"crash", b"hang", b"kill"
"""Files that begin so end the process that opens them, keep it busy for ever, or have it killed."""


class CrashingVideo(Video):
    """As FFmpeg would be with a bug in it."""

    def __init__(self, path: Path, *, threads: int = 0, deinterlace: bool = True) -> None:
        if path.read_bytes().startswith(CRASH):
            ctypes.string_at(0)
        if path.read_bytes().startswith(KILL):
            os.kill(os.getpid(), signal.SIGKILL)
        if path.read_bytes().startswith(HANG):
            hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
        super().__init__(path, threads=threads, deinterlace=deinterlace)


def frames(job: dict[str, Any], report: EventReporter) -> None:
    """Be the frames stage, over such a library."""
    vars(video)["Video"] = CrashingVideo
    frame_recorder.LIMIT_CPU_SECONDS, frame_recorder.POLL_SECONDS = 0.6, 0.1
    stage.run(job, report)


def stop(job: dict[str, Any], report: EventReporter) -> None:
    """Cut the first stretch and be asked to end."""
    cut({**job, "cuts": job["cuts"][:1]}, report)
    os.kill(os.getpid(), signal.SIGTERM)


def run(job: dict[str, Any], report: EventReporter) -> None:
    """Cut until it comes to the second stretch of a file called `deadly`."""
    seen = 0
    for one in job["cuts"]:
        seen += "deadly" in one[0]
        if seen == 2:
            os.kill(os.getpid(), signal.SIGSEGV)
        cut({**job, "cuts": [one]}, report)


def killed(job: dict[str, Any], report: EventReporter) -> None:
    """Is killed after it has cut one stretch, until there is but one to cut."""
    if len(job["cuts"]) == 1:
        cut(job, report)
        return
    cut({**job, "cuts": job["cuts"][:1]}, report)
    os.kill(os.getpid(), signal.SIGKILL)


def killed_at_once(job: dict[str, Any], report: EventReporter) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
