"""Passes a job as JSON from the planning process to the worker process, in an in-memory file, which
disappears however the processes end.

Both ends run the same version, so they know the same fields. A job is a dataclass with nested
values: dataclasses travel by field name. Items are NamedTuples and travel as lists of values,
because a job may hold 100,000 of them.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

from artifacts.records import read_record
from stages.process.gc_freeze import gc_frozen

J = TypeVar("J")


def job_fields(job: Any) -> dict[str, Any]:
    """Return the fields of a job by name, for JSON. Unlike `asdict`, it does not copy the items of
    every batch."""
    found = {field.name: getattr(job, field.name) for field in fields(job)}
    return {n: job_fields(value) if is_dataclass(value) else value for n, value in found.items()}


def job_descriptor(job: dict[str, Any]) -> int:
    """Return a descriptor from which the job can be read."""
    descriptor = os.memfd_create("penstock-job")
    with os.fdopen(descriptor, "wb", closefd=False) as file:
        file.write(json.dumps(job).encode())  # three times as fast as json.dump
    return descriptor


def read_job(descriptor: int) -> dict[str, Any]:
    """Return the job behind a descriptor, and close it. Another process may have read it before and
    moved the shared position."""
    with os.fdopen(descriptor, "rb") as file, gc_frozen():
        file.seek(0)
        job: dict[str, Any] = json.load(file)
    return job


def value_in(arguments: dict[str, Any], name: str) -> Any:
    """Return a field of a job, or of the `half` in it; None without it."""
    return {**arguments, **arguments.get("half", {})}.get(name)


def parse_job(kind: type[J], values: Mapping[str, Any]) -> J:
    """Return a job of class `kind`. Raises TypeError as `read_record` does."""
    with gc_frozen():  # none of the 100,000 items is garbage
        return read_record(kind, values)


def items_of(kind: type[J], values: Sequence[Any]) -> list[J]:
    """Return items of a class, each given as the list of its values. Raises TypeError."""
    return read_record(list[kind], values)  # type: ignore[valid-type]
