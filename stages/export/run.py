"""Runs the stage that writes checkpoints: quantized ones, or ones with a GGUF file."""

from importlib import import_module
from typing import Any

from stages.export import GGUF, ExportJob
from stages.process.events import EventReporter
from stages.process.job import parse_job


def _writer(job: ExportJob) -> Any:
    return import_module(
        "stages.export.gguf" if job.kind in GGUF else "stages.export.quant_formats"
    )


def warm(fields: dict[str, Any]) -> None:
    """Import what the writer needs before memory is counted."""
    job = parse_job(ExportJob, fields)
    _writer(job).warm(job)


def run(fields: dict[str, Any], report: EventReporter) -> None:
    """Write the checkpoint of an ExportJob, and report each weight file as an item.

    A note holds the number of `files` and how many are `there` already. Raises PenstockError.
    """
    job = parse_job(ExportJob, fields)
    with job.files.compared():
        _writer(job).export(job, report)
