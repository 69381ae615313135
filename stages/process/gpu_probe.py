"""The stage that tests a GPU: whether torch can compute on it, how much memory it reports, and how
much of it each process takes."""

from dataclasses import dataclass
from typing import Any

from stages.process.device_limit import check_same_card, context_bytes
from stages.process.job import parse_job
from stages.process.report import EventReporter


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeJob:
    """The GPU to test."""

    device: str
    """`cuda:N`."""


def warm(job_fields: dict[str, Any]) -> None:
    """Import torch before memory is counted."""
    import torch  # noqa: F401


def run(job_fields: dict[str, Any], report: EventReporter) -> None:
    """Test the job's GPU and send a note `gpu`. Raises torch's errors, and EnvironmentFault if
    torch uses another GPU than the driver reports."""
    import torch

    device = parse_job(ProbeJob, job_fields).device
    context = context_bytes(device, "float16")
    check_same_card(device)
    free, total = torch.cuda.mem_get_info(device)
    report.note(gpu={"free_bytes": free, "total_bytes": total, "context_bytes": context})
