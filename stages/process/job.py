"""Hands a job from the process that plans a stage to the one that is it. It goes as JSON, of which
both ends know the fields; knows no stage's."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

J = TypeVar("J")


def told_of(job: Any) -> dict[str, Any]:
    """Return the fields of a job by name; not `asdict`, which copies every member of every
    batch."""
    return {field.name: getattr(job, field.name) for field in fields(job)}


def job_of(kind: type[J], told: Mapping[str, Any]) -> J:
    """Return the job that was told, as far as one class knows it."""
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in told.items() if name in names})
