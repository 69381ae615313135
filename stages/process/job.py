"""Passes a job as JSON from the planning process to the worker process, in an in-memory file, which
disappears however the processes end.

Both ends run the same version, so they know the same fields. A job is a dataclass with nested
values: dataclasses travel by field name. Items are NamedTuples and travel as lists of values,
because a job may hold 100,000 of them.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache, partial
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from stages.process.gc_freeze import gc_frozen

J = TypeVar("J")
Reader = Callable[[Any, str], Any]
"""Value from JSON and the name of its field → the value as the field holds it."""
SEQUENCES = (list, tuple)
"""Types of sequences; JSON holds both as lists."""


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
    """Return a job or item of class `kind`. Raises TypeError for an unknown field, a missing
    required field, or a value of another type than the field."""
    with gc_frozen():  # none of the 100,000 items is garbage
        return _read(kind, values)


def _read(kind: type[J], values: Mapping[str, Any]) -> J:
    readers, required = _plan(kind)  # type: ignore[arg-type]
    name = kind.__name__
    if unknown := sorted(values.keys() - readers.keys()):
        raise TypeError(f"{name} has no field {unknown[0]}")
    for field in required:
        if field not in values:
            raise TypeError(f"{name} needs the field {field}")
    return kind(**{n: readers[n](value, f"{name}.{n}") for n, value in values.items()})


@cache
def _plan(kind: type[Any]) -> tuple[dict[str, Reader], list[str]]:
    """Return a reader for each field of a class, and the names of the required fields."""
    hints = get_type_hints(kind)
    if is_dataclass(kind):
        names = [field.name for field in fields(kind)]
        with_default = {f.name for f in fields(kind) if f.default is not MISSING}
        with_default |= {f.name for f in fields(kind) if f.default_factory is not MISSING}
    else:
        names, with_default = list(kind._fields), set(kind._field_defaults)
    return {n: _reader(hints[n]) for n in names}, [n for n in names if n not in with_default]


def _reader(declared: Any) -> Reader:
    """Return a function that reads values of a type."""
    if is_dataclass(declared):
        return partial(_nested, declared)
    if _is_item(declared):
        return partial(_item, declared)
    is_union = get_origin(declared) in (Union, UnionType)
    inner = [arg for arg in get_args(declared) if _nests(arg)]
    if not inner:
        every = get_args(declared) if is_union else (declared,)
        quick = {get_origin(one) or one for one in every}
        return lambda value, where: (
            value if type(value) in quick else _checked(declared, value, where)
        )
    each = _reader(inner[0])
    if is_union:
        return lambda value, where: None if value is None else each(value, where)
    if get_origin(declared) in SEQUENCES and _is_item(inner[0]):
        return lambda value, where: items_of(inner[0], _checked(declared, value, where), where)

    def read(value: Any, where: str) -> Any:
        value = _checked(declared, value, where)
        if isinstance(value, Mapping):
            return {key: each(one, where) for key, one in value.items()}
        return type(value)(each(one, where) for one in value)

    return read


def _is_item(declared: Any) -> bool:
    return (
        isinstance(declared, type) and issubclass(declared, tuple) and hasattr(declared, "_fields")
    )


def _nests(declared: Any) -> bool:
    """Return whether JSON represents values of a type differently than a job does."""
    if is_dataclass(declared) or _is_item(declared) or get_origin(declared) is tuple:
        return True
    return any(map(_nests, get_args(declared)))


def _nested(kind: Any, value: Any, where: str) -> Any:
    """Read a nested dataclass. Raises TypeError."""
    if not isinstance(value, (kind, Mapping)):
        raise TypeError(f"{where} is {type(value).__name__}, not {_type_name(kind)}")
    return value if isinstance(value, kind) else _read(kind, value)


def items_of(kind: type[J], values: Iterable[Any], where: str = "the line") -> list[J]:
    """Return items of a class, each given as a list of values or by field name. Raises
    TypeError."""
    types, make = tuple(kind.__annotations__.values()), vars(kind)["_make"].__get__(None, kind)
    return [
        make(each)
        if type(each) is list and (*map(type, each),) == types
        else _item(kind, each, where)
        for each in values
    ]


def _item(kind: Any, value: Any, where: str) -> Any:
    """Read one item. Raises TypeError."""
    if isinstance(value, Mapping):
        return _read(kind, value)
    readers, name = _plan(kind)[0], kind.__name__
    if not isinstance(value, SEQUENCES) or len(value) != len(readers):
        raise TypeError(f"{where} holds {value!r:.80}, not a {name} of {', '.join(readers)}")
    every = zip(readers.values(), value, readers, strict=True)
    return kind(*[read(one, f"{name}.{field}") for read, one, field in every])


def _checked(declared: Any, value: Any, where: str) -> Any:
    """Return a value as its field holds it. Plain values in sequences and mappings are not checked,
    because a job holds many. Raises TypeError."""
    origin = get_origin(declared) or declared
    if origin in SEQUENCES and isinstance(value, SEQUENCES):
        return value if isinstance(value, origin) else origin(value)
    if not _is_of(value, declared):
        raise TypeError(f"{where} is {type(value).__name__}, not {_type_name(declared)}")
    return value


def _is_of(value: Any, declared: Any) -> bool:
    """Return whether a value has a type. An int is accepted as a float; a bool is neither."""
    origin = get_origin(declared) or declared
    if origin is Any:
        return True
    if origin in (Union, UnionType):
        return any(_is_of(value, each) for each in get_args(declared))
    if origin is Literal:
        return value in get_args(declared)
    if origin in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, (int, float) if origin is float else origin)


def _type_name(declared: Any) -> str:
    """Return the name of a type as it is declared."""
    return declared.__name__ if type(declared) is type else str(declared)
