"""Describes a model in its own process, so that the parent need not import torch."""

from math import prod
from pathlib import Path
from typing import Any

from artifacts.errors import UsageError
from stages.models.half_job import DescribeJob
from stages.models.halves.classes import config_and_class, skeleton_of
from stages.models.hub.resolve import find_model
from stages.models.inspection import describe
from stages.models.processors.prepare import load_processor, placeholder_tokens
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
                today=job.today,
            )
    except RecursionError as error:
        raise UsageError(
            f"model {job.model} cannot be read: one of its files is nested too deeply",
            hint="Check its source, and its *.json and *.jinja files",
        ) from error
    report.note(profile=profile.to_json())


def run_gguf(job_fields: dict[str, Any], report: EventReporter) -> None:
    """Compare a user's GGUF file with the checkpoint, and send what it is as the note `file`."""
    from stages.models.gguf.context import kind_of
    from stages.models.gguf.user_file import check_tokens, compared, expected_shapes
    from stages.models.loading import stored_weights

    job = parse_job(DescribeJob, job_fields)
    with job.files.compared():
        folder = find_model(job.model, job.revision).folder
        config, cls = config_and_class(folder, job.trust_remote_code)
        skeleton = skeleton_of(config, cls)
        stored = stored_weights(folder, skeleton)
        header, mapping = compared(Path(job.gguf), config, skeleton, stored)
        processor = load_processor(folder, job.trust_remote_code)
        check_tokens(header, processor.tokenizer, placeholder_tokens(processor))
    expected = expected_shapes(skeleton, mapping)
    replaced = sum(prod(shape) for name, shape in expected.items() if name in header.tensors)
    found = {"bytes": header.path.stat().st_size, "parameters": header.parameters}
    found |= {"replaced": replaced, **mapping.dimensions}
    report.note(file={"kind": kind_of(header), **found})
