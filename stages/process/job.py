"""Hands a job from the process that plans a stage to the one that is it. It goes as JSON, of which
both ends, being of one version, know the same fields; has no stage of its own."""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from functools import cache
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

J = TypeVar("J")
SEQUENCES = (list, tuple)
"""Types of sequences; JSON holds both as lists."""


def told_of(job: Any) -> dict[str, Any]:
    """Return the fields of a job by name; not `asdict`, which copies every member of every
    batch."""
    return {field.name: getattr(job, field.name) for field in fields(job)}


def job_of(kind: type[J], told: Mapping[str, Any]) -> J:
    """Return the job of a class that has exactly these fields. Raises TypeError for a field that
    the class does not have, for a required one that is missing, and for a value of another type
    than the field's."""
    types = _types(kind)  # type: ignore[arg-type]
    name = kind.__name__
    if unknown := sorted(told.keys() - types.keys()):
        raise TypeError(f"{name} has no field {unknown[0]}")
    for field in fields(kind):  # type: ignore[arg-type]
        required = field.default is MISSING and field.default_factory is MISSING
        if required and field.name not in told:
            raise TypeError(f"{name} needs the field {field.name}")
    return kind(**{n: _taken(value, types[n], f"{name}.{n}") for n, value in told.items()})


def part_of(kind: type[J], told: Mapping[str, Any]) -> J:
    """Return the job of a class whose fields are among those of a whole job. Raises what job_of
    raises, but for the other fields of the whole."""
    names = _types(kind)  # type: ignore[arg-type]
    return job_of(kind, {name: told[name] for name in names if name in told})


@cache
def _types(kind: type[Any]) -> dict[str, Any]:
    """Return the type of each field of a class."""
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def _taken(value: Any, wanted: Any, where: str) -> Any:
    """Return a value as its field holds it. What lies in sequences and mappings is not looked at:
    there are many members in a job. Raises TypeError."""
    origin = get_origin(wanted) or wanted
    if origin in SEQUENCES and isinstance(value, SEQUENCES):
        return value if isinstance(value, origin) else origin(value)
    if not _is_of(value, wanted):
        raise TypeError(f"{where} is {type(value).__name__}, and not {_words(wanted)}")
    return value


def _is_of(value: Any, wanted: Any) -> bool:
    """Return whether a value is of a type; a whole number is a float, too, and a bool is none."""
    origin = get_origin(wanted) or wanted
    if origin is Any:
        return True
    if origin in (Union, UnionType):
        return any(_is_of(value, each) for each in get_args(wanted))
    if origin is Literal:
        return value in get_args(wanted)
    if origin in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, (int, float) if origin is float else origin)


def _words(wanted: Any) -> str:
    """Return a type as it is declared."""
    return wanted.__name__ if type(wanted) is type else str(wanted)
