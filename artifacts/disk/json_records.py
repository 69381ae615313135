"""Reads JSON of our own as typed values.

Jobs, their items, events, profiles and other records are read as the type that wrote them. A
dataclass travels as an object with its fields by name, a NamedTuple as the list of its values.
"""

from collections.abc import Mapping
from dataclasses import is_dataclass
from functools import cache
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

R = TypeVar("R")


def read_record(kind: type[R], value: Any) -> R:
    """Return a JSON value as the type `kind`; a whole number becomes a float where a float is
    declared. Raises TypeError, with the place, for an unknown field, a missing one, or a value of
    another type."""
    import msgspec  # 0.03 s, which --help does without

    name = kind.__name__ if isinstance(kind, type) else str(kind)
    _refuse_unknown(kind, value, name)
    try:
        return msgspec.convert(value, kind)
    except (msgspec.ValidationError, UnicodeEncodeError) as error:
        raise TypeError(f"{name}: {error}") from error


def _refuse_unknown(declared: Any, value: Any, place: str) -> None:
    """Raise TypeError for a field that a dataclass does not have: msgspec ignores those."""
    types = _types(declared)
    if types is not None and isinstance(value, Mapping):
        if unknown := sorted(value.keys() - types.keys()):
            raise TypeError(f"{place} has no field {unknown[0]}")
        for name, one in value.items():
            _refuse_unknown(types[name], one, f"{place}.{name}")
    elif get_origin(declared) in (Union, UnionType):
        for inner in get_args(declared):
            _refuse_unknown(inner, value, place)
    elif _has_fields(declared) and isinstance(value, Mapping | list | tuple):
        for one in value.values() if isinstance(value, Mapping) else value:
            for inner in get_args(declared):
                _refuse_unknown(inner, one, place)


@cache
def _types(declared: Any) -> Mapping[str, Any] | None:
    """Return the type of each field of a dataclass by name; None for another type."""
    return get_type_hints(declared) if is_dataclass(declared) else None


@cache
def _has_fields(declared: Any) -> bool:
    """Return whether a type is or holds a dataclass. A job's 100,000 items do not."""
    return is_dataclass(declared) or any(map(_has_fields, get_args(declared)))
