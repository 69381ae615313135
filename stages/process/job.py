"""The JSON by which a stage's job passes from the planner to the worker.

A job travels in an in-memory file, which disappears however the processes end. A job is a dataclass
with nested values: dataclasses travel by field name. Items are NamedTuples and travel as lists of
values, because a job may hold 100,000 of them.

A worker gets further work over a pipe, if its job names one (stages/process/requests.py).
"""

import contextlib
import gc
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, TypeAlias, TypedDict, TypeVar

from artifacts.disk.json_records import read_record
from artifacts.disk.json_shapes import Json


@contextlib.contextmanager
def gc_frozen() -> Iterator[None]:
    """Pause the garbage collector in this block. Collections take a quarter of the time of
    importing torch and the classes of a model."""
    if not gc.isenabled():  # already inside such a block
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


J = TypeVar("J")
JobFields: TypeAlias = Mapping[str, Json]
"""Fields of a job by name."""


class ProcessJob(TypedDict):
    """What a process is to do."""

    name: str
    entry: str
    arguments: JobFields
    device: str
    journal: str | None
    beside: bool
    budget: Mapping[str, int] | None


def job_fields(job: Any) -> dict[str, Any]:
    """Return the fields of a job by name, for JSON. Unlike `asdict`, it does not copy the items of
    every batch."""
    values = {field.name: getattr(job, field.name) for field in fields(job)}
    return {n: job_fields(value) if is_dataclass(value) else value for n, value in values.items()}


def job_descriptor(job: ProcessJob) -> int:
    descriptor = os.memfd_create("penstock-job")
    with os.fdopen(descriptor, "wb", closefd=False) as file:
        file.write(json.dumps(job).encode())  # three times as fast as json.dump
    return descriptor


def read_job(descriptor: int) -> ProcessJob:
    """Return the job behind a descriptor, and close it. Another process may have read it before and
    moved the shared position."""
    with os.fdopen(descriptor, "rb") as file, gc_frozen():
        file.seek(0)
        job: ProcessJob = json.load(file)
    return job


def value_in(arguments: JobFields, name: str) -> Json:
    """Return a field of a job, or of the `half` in it; None without it."""
    half = arguments.get("half")
    return (half if isinstance(half, Mapping) and name in half else arguments).get(name)


def parse_job(kind: type[J], values: Json) -> J:
    """Return a job of class `kind`. Raises TypeError as `read_record` does."""
    with gc_frozen():  # none of the 100,000 items is garbage
        return read_record(kind, values)


def items_of(kind: type[J], values: Sequence[Json]) -> list[J]:
    """Return items of a class, each given as the list of its values. Raises TypeError."""
    return read_record(list[kind], values)  # type: ignore[valid-type]
