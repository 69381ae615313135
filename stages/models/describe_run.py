"""Describes a model in its own process, so that the parent need not import torch."""

from typing import Any

from artifacts.errors import UsageError
from artifacts.model_files import ModelFiles
from stages.models.inspection import describe
from stages.process.deferred_imports import import_transformers
from stages.process.report import EventReporter


def warm(job: dict[str, Any]) -> None:
    """Import what every model needs, so that it does not count as memory of describing."""
    import_transformers()


def run(job: dict[str, Any], report: EventReporter) -> None:
    """Describe the job's model and send the result as the note `profile`.

    Job: model (folder or hub id), revision, trust_remote_code, max_pixels, max_video_pixels,
    as_published, files (the model files that it was planned with)."""
    try:
        with ModelFiles.from_json(job.get("files", {})).compared():
            profile = describe(
                job["model"],
                trust_remote_code=bool(job.get("trust_remote_code", False)),
                revision=job.get("revision"),
                max_pixels=int(job.get("max_pixels") or 0),
                max_video_pixels=int(job.get("max_video_pixels") or 0),
                as_published=job.get("as_published"),
            )
    except RecursionError as error:
        raise UsageError(
            f"model {job['model']} cannot be read: one of its files is nested too deeply",
            hint="Check its source, and its *.json and *.jinja files",
        ) from error
    report.note(profile=profile.to_json())
