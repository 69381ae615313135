"""The stage that tests a GPU: whether torch can compute on it, and the memory that it reports."""

from typing import Any

from stages.process.device_limit import check_same_card, warm_up
from stages.process.report import EventReporter


def warm(job: dict[str, Any]) -> None:
    """Import what it needs, which is then no part of what it takes."""
    import torch  # noqa: F401


def run(job: dict[str, Any], report: EventReporter) -> None:
    """Answer a job, which names a `device`, with a note `gpu`. Raises what torch raises, and
    EnvironmentFault when it computes on another GPU than the driver told of."""
    import torch

    device = str(job["device"])
    warm_up(device, "float16")
    check_same_card(device)
    free, total = torch.cuda.mem_get_info(device)
    report.note(gpu={"free_bytes": free, "total_bytes": total})
