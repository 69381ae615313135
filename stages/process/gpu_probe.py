"""The stage that tests a GPU: whether torch can compute on it, and how much memory it reports."""

from typing import Any

from stages.process.device_limit import check_same_card, warm_up
from stages.process.report import EventReporter


def warm(job: dict[str, Any]) -> None:
    """Import torch before memory is counted."""
    import torch  # noqa: F401


def run(job: dict[str, Any], report: EventReporter) -> None:
    """Test the job's `device` and send a note `gpu`. Raises torch's errors, and EnvironmentFault if
    torch uses another GPU than the driver reports."""
    import torch

    device = str(job["device"])
    warm_up(device, "float16")
    check_same_card(device)
    free, total = torch.cuda.mem_get_info(device)
    report.note(gpu={"free_bytes": free, "total_bytes": total})
