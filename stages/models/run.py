"""The stage that describes a model in a process of its own, so that its parent need not import
torch."""

from typing import Any

from stages.models.inspection import describe
from stages.process.report import Report


def run(job: dict[str, Any], report: Report) -> None:
    """Job: model (folder or hub id), revision, trust_remote_code. Answers with a note `card`."""
    card = describe(
        job["model"],
        trust_remote_code=bool(job.get("trust_remote_code", False)),
        revision=job.get("revision"),
    )
    report.note(card=card.to_json())
