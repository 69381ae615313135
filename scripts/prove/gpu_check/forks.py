"""Checks whether stages can be forked on a GPU: forked processes must compute bit for bit what a
fresh one computes, one after the other and beside each other, and release the card."""

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from artifacts.errors import StageDied
from flows.core.machine.launch import DirectLauncher, StageCall
from scripts.prove.gpu_check.rows import Row, Setting, one_line, row
from stages.process.deferred_imports import import_transformers
from stages.process.device import device_holders, device_used_bytes, hold_device
from stages.process.events import EventReporter, StageOutcome
from stages.process.fork_client import ForkServer
from stages.process.job import parse_job
from stages.process.stage_process import StageProcess, wait_for_release

ENTRIES = {"try_forks": "scripts.prove.gpu_check.forks:run"}
EDGE = 512
"""Edge of the matrices and of the image."""
MEETING_SECONDS = 60.0
"""How long a process waits for the one beside it."""


def forks(setting: Setting) -> Iterator[Row]:
    """Whether forked stages compute on the card as fresh ones do."""
    why, expected = try_forks(setting.device), "as in a fresh process"
    yield row("forked stages compute on the card", expected, one_line(why) or expected, not why)


def try_forks(device: str) -> str:
    """Return why stages cannot be forked on a GPU; empty if they can. Waits for the card. Raises
    PenstockError."""
    # The lock is held here, so the processes are started as workers, which take none.
    with (
        hold_device(device, lambda _: None) or contextlib.nullcontext(),
        TemporaryDirectory(prefix="penstock-forks-", ignore_cleanup_errors=True) as folder,
    ):
        launcher = DirectLauncher(lambda *_: None, ENTRIES)
        return _why_not(device, partial(_start, device, Path(folder), launcher))


def _why_not(device: str, start: Callable[..., StageProcess]) -> str:
    before = device_used_bytes(device)
    expected = start(None).wait()
    try:
        with ForkServer() as server:
            outcomes = [start(server).wait() for _ in range(2)]
            beside = [start(server, beside=True) for _ in range(2)]
            outcomes += [process.wait() for process in beside]
            why = _difference(device, expected, outcomes)
    except StageDied as error:
        return error.message
    peak = max(outcome.peak_device_bytes for outcome in outcomes)
    return why or next(iter(wait_for_release(device, before, peak)[1]), "")


def _difference(device: str, expected: StageOutcome, outcomes: Sequence[StageOutcome]) -> str:
    """Return what is wrong with forked processes; empty if nothing is. Called while the fork server
    is there."""
    servers = {outcome.notes["parent"] for outcome in outcomes}
    if expected.notes["parent"] in servers or len(servers) > 1:
        return "memory is short, or importing a library has started a thread or used CUDA"
    if servers & device_holders(device).keys():
        return "the process that forks has a context on the card"
    if {outcome.notes["digest"] for outcome in outcomes} != {expected.notes["digest"]}:
        return "a forked process computes other bits than a fresh one"
    return next((warning for outcome in outcomes for warning in outcome.warnings), "")


def _start(
    device: str,
    folder: Path,
    launcher: DirectLauncher,
    server: ForkServer | None,
    *,
    beside: bool = False,
) -> StageProcess:
    meeting = folder / "meeting"
    meeting.mkdir(exist_ok=True)
    return launcher.start(
        StageCall(
            name="try_forks",
            job=ForkedJob(device=device, meeting=str(meeting) if beside else ""),
            device=device,
            log=folder / "forks.log",
            fork_server=server,
            beside=True,
        )
    )


# The process


@dataclass(frozen=True, kw_only=True, slots=True)
class ForkedJob:
    """One process of the check."""

    device: str
    """`cuda:N`."""
    meeting: str
    """Folder in which to wait for a second process with a context before computing; empty: do not
    wait."""


def warm(job_fields: dict[str, Any]) -> None:
    """Import what every model needs, as the fork server does for all stages."""
    import_transformers()


def run(job_fields: dict[str, Any], report: EventReporter) -> None:
    """Compute on the job's GPU and send the notes `digest` and `parent`, the parent's process
    id."""
    import torch

    job = parse_job(ForkedJob, job_fields)
    torch.zeros(1, device=job.device)
    if job.meeting:
        meet(Path(job.meeting))
    report.note(digest=digest_of_products(job.device), parent=os.getppid())


def meet(folder: Path) -> None:
    """Wait until two processes have come to this folder. Raises TimeoutError."""
    (folder / str(os.getpid())).touch()
    deadline = time.monotonic() + MEETING_SECONDS
    while len(list(folder.iterdir())) < 2:
        if time.monotonic() > deadline:
            raise TimeoutError("the process beside this one has made no context in time")
        time.sleep(0.01)


def digest_of_products(device: str) -> str:
    """Return a digest of a matrix product and a convolution, in 32 and in 16 bit."""
    import torch

    digest, seeded = hashlib.sha256(), torch.Generator().manual_seed(0)
    drawn = torch.randn(EDGE, EDGE, generator=seeded)
    kernel = torch.randn(8, 3, 14, 14, generator=seeded)
    with torch.inference_mode():
        for dtype in (torch.float32, torch.float16):
            square = drawn.to(device=device, dtype=dtype)
            image, weight = square.expand(1, 3, EDGE, EDGE), kernel.to(device=device, dtype=dtype)
            for made in (square @ square, torch.nn.functional.conv2d(image, weight, stride=14)):
                digest.update(made.cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
