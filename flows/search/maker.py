"""Describes the model and settings of an index's vectors, and configures runs that compute more of
them. Runs nothing."""

from dataclasses import replace
from typing import TypeVar

from artifacts.index.manifest import Maker
from artifacts.keys import digest_of
from flows.job.prepare import Job
from flows.options.commands import RunOptions
from flows.options.model import PRECISIONS, TORCH
from stages.models.graphs.providers import BACKENDS

C = TypeVar("C", bound=RunOptions)


def maker_of(job: Job, width: int) -> Maker:
    """Return the model and settings that determine the vectors of a job."""
    settings = job.model.best("vision")
    versions_of = [stage.output_version for stage in job.pipeline]
    return Maker(
        model=job.model.name,
        revision=job.config.revision,
        half=job.model.digests["vision"],
        recipe=digest_of([versions_of, settings.key_fields]),
        precision=settings.label,
        width=width,
        text_half=job.model.digests["language"],
    )


def as_made(config: C, maker: Maker) -> C:
    """Return a configuration with the model and settings of an index's vectors."""
    precision = maker.precision if maker.precision in PRECISIONS else "native"
    backend = maker.precision.partition("-")[0]  # as in onnx-int8
    return replace(
        config,
        model=maker.model,
        revision=maker.revision,
        precision=precision,
        vision_backend=backend if backend in BACKENDS else TORCH,
    )
