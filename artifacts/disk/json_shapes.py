"""Reads JSON files that may have been edited.

A file is validated against the shape that it was written in, with a hint for its reader. A shape is
one of:

- a function of this module that checks one value (`text`, `count`, `number`, ...)
- a list of one shape
- a tuple with one shape per element
- a dict of an object's fields
- `Nullable`, `OptionalField` or `MapOf` of another shape
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from artifacts.disk.regular_files import read_text
from artifacts.errors import EnvironmentFault, UsageError

Shape = Any
MAX_NUMBER = 1 << 63
"""Bound on the size of numbers."""
MAX_DEPTH = 32
"""Largest nesting depth of lists and objects; ours have eight."""
BYTES = 1 << 30
"""Largest file in bytes: that of about a million captions."""


class ShapeError(ValueError):
    """JSON does not have the expected shape. The message names the difference."""


@dataclass(frozen=True, slots=True)
class _Around:
    """A shape that depends on another one."""

    shape: Shape


class Nullable(_Around):
    """Null or the given shape."""


class OptionalField(_Around):
    """A field that may be omitted."""


class MapOf(_Around):
    """An object with arbitrary keys whose values have the given shape."""


def text(value: Any) -> bool:
    """Return whether a value is a string that UTF-8 can encode."""
    try:
        return isinstance(value, str) and bool(value.encode() or True)
    except UnicodeEncodeError:
        return False


def flag(value: Any) -> bool:
    """Return whether a value is true or false."""
    return isinstance(value, bool)


def number(value: Any) -> bool:
    """Return whether a value is a finite number within MAX_NUMBER."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < MAX_NUMBER  # not of NaN or infinity


def count(value: Any) -> bool:
    """Return whether a value is a whole number from 0."""
    return isinstance(value, int) and number(value) and value >= 0


def moment(value: Any) -> bool:
    """Return whether a value is a date and time."""
    try:
        return bool(datetime.fromisoformat(value).timestamp() or True)
    except (TypeError, ValueError, OverflowError, OSError):
        return False


def anything(value: Any) -> bool:
    """Accept any JSON value."""
    return True


def check(value: Any, shape: Shape, where: str = "it") -> None:
    """Raise ShapeError, with the place, unless a value has the shape."""
    if isinstance(shape, Nullable):
        if value is not None:
            check(value, shape.shape, where)
    elif isinstance(shape, dict | MapOf):
        _check_object(value, shape, where)
    elif isinstance(shape, list | tuple):
        if not isinstance(value, list) or (isinstance(shape, tuple) and len(value) != len(shape)):
            raise ShapeError(f"{where} is not the expected list")
        of_each = shape if isinstance(shape, tuple) else shape * len(value)
        for at, (inside, one) in enumerate(zip(value, of_each, strict=True)):
            check(inside, one, f"{where}[{at}]")
    elif not shape(value):
        kind = shape.__name__  # `<lambda>` has no name
        raise ShapeError(f"{where} is not a {kind if kind.isidentifier() else 'known value'}")


def _check_object(value: Any, shape: dict[str, Shape] | MapOf, where: str) -> None:
    if not isinstance(value, dict):
        raise ShapeError(f"{where} is not an object")
    if isinstance(shape, MapOf):
        for name, inside in value.items():
            check(name, text, f"a name in {where}")
            check(inside, shape.shape, f"{where}.{name[:40]}")
        return
    for name, one in shape.items():
        if name in value:
            check(
                value[name], one.shape if isinstance(one, OptionalField) else one, f"{where}.{name}"
            )
        elif not isinstance(one, OptionalField):
            raise ShapeError(f"{where}: {name} is missing")


def parse(line: str) -> Any:
    """Parse JSON. Raises ValueError, also for excessive nesting and for NaN or infinity."""
    try:
        value = json.loads(line, parse_constant=_refuse)
    except RecursionError as error:
        raise ShapeError("it is nested too deeply") from error
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inside
            for one in level
            if isinstance(one, dict | list)
            for inside in (one if isinstance(one, list) else one.values())
        ]
        if not level:
            return value
    raise ShapeError("it is nested too deeply")


def _refuse(name: str) -> Any:
    raise ShapeError(f"{name} is not a JSON number")


def read_json(path: Path, shape: Shape, hint: str, more: Callable[[Any], object] = bool) -> Any:
    """Return the content of a JSON file, which `more` has checked, too. Raises UsageError if
    it is missing, EnvironmentFault if it has another shape."""
    try:
        value = parse(read_text(path, BYTES))
        check(value, shape)
        more(value)
        return value
    except FileNotFoundError as error:
        raise UsageError(f"{path} does not exist", hint=hint) from error
    except (OSError, ValueError) as error:
        raise unreadable(path, error, hint) from error


def unreadable(path: Path, error: Exception, hint: str, line: str = "") -> EnvironmentFault:
    """Return the error of a file that cannot be read, or has another shape."""
    why = error.strerror if isinstance(error, OSError) else str(error)
    if isinstance(error, ValueError) and not isinstance(error, ShapeError):
        why = "invalid JSON"
    return EnvironmentFault(f"{path} cannot be read{line}: {why}", hint=hint)
