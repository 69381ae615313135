"""Runs the stage that writes quantized checkpoints."""

from stages.export import ExportJob, quant_formats
from stages.process.events import EventReporter
from stages.process.job import JobFields, parse_job


def warm(fields: JobFields) -> None:
    """Import what the writer needs before memory is counted."""
    quant_formats.warm(parse_job(ExportJob, fields))


def run(fields: JobFields, report: EventReporter) -> None:
    """Write the checkpoint of an ExportJob, and report each weight file as an item.

    A note holds the number of `files` and how many are `there` already. Raises PenstockError.
    """
    job = parse_job(ExportJob, fields)
    with job.files.compared():
        quant_formats.export(job, report)
