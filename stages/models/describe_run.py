"""Describes a model in its own process, so that the parent need not import torch."""

from typing import Any

from artifacts.errors import UsageError
from stages.models.half_job import DescribeJob
from stages.models.inspection import describe
from stages.process.deferred_imports import import_transformers
from stages.process.job import parse_job
from stages.process.report import EventReporter


def warm(job_fields: dict[str, Any]) -> None:
    """Import what every model needs, so that it does not count as memory of describing."""
    import_transformers()


def run(job_fields: dict[str, Any], report: EventReporter) -> None:
    """Describe the job's model and send the result as the note `profile`."""
    job = parse_job(DescribeJob, job_fields)
    try:
        with job.files.compared():
            profile = describe(
                job.model,
                trust_remote_code=job.trust_remote_code,
                revision=job.revision,
                max_pixels=job.max_pixels,
                max_video_pixels=job.max_video_pixels,
                as_published=job.as_published,
            )
    except RecursionError as error:
        raise UsageError(
            f"model {job.model} cannot be read: one of its files is nested too deeply",
            hint="Check its source, and its *.json and *.jinja files",
        ) from error
    report.note(profile=profile.to_json())
