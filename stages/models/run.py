"""Describes a model in its own process, so that the parent need not import torch."""

from typing import Any

from artifacts.errors import UsageError
from artifacts.model_files import ModelFiles
from stages.models.inspection import describe
from stages.process.deferred_imports import import_transformers
from stages.process.report import EventReporter


def warm(job: dict[str, Any]) -> None:
    """Import what every model needs, which is then no part of what describing takes."""
    import_transformers()


def run(job: dict[str, Any], report: EventReporter) -> None:
    """Describe the job's model, and answer with a note `profile`. Job: model (folder or hub id),
    revision, trust_remote_code, max_pixels, max_video_pixels, as_published, files (those that it
    was planned with)."""
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
            f"model {job['model']} cannot be read: something in its files is nested too deeply",
            hint="Check where it comes from, and its *.json and *.jinja files",
        ) from error
    report.note(profile=profile.to_json())
