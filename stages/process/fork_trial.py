"""The stage that tests whether a forked process can compute on a GPU: it makes a context, computes
products and reports a digest of them."""

import hashlib
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.process.deferred_imports import import_transformers
from stages.process.job import parse_job
from stages.process.report import EventReporter

EDGE = 512
"""Edge of the matrices and of the image."""
MEETING_SECONDS = 60.0
"""How long a process waits for the one beside it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ForkTrialJob:
    """One process of the trial."""

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

    job = parse_job(ForkTrialJob, job_fields)
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
